"""Toybox: how the embedded base model is made, a tiny Stable Diffusion of a rendered world of toys, animals and things.

`python -m toybox all --sprites FOLDER` runs the whole recipe and may be stopped and run again; each stage can
be run alone. FOLDER is the assets folder of the npm package that `sprites` names. The finished model needs none of it.
"""
