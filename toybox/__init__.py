"""Toybox: how the embedded base model was made, a tiny Stable Diffusion of a rendered world of toys and animals.

The world is rendered from emoji sprites (the assets folder of the npm package named in ``toybox.sprites``):

    python -m toybox all --sprites FOLDER        # all stages; an interrupted run resumes
    python -m toybox base --minutes 30           # one stage: render, encoder, encode, clip, base, decoder, assemble
    python -m toybox judge --sprites FOLDER      # train the judge that scores the base model
    python -m toybox score MODEL --sprites FOLDER
    python -m toybox sheet MODEL                 # generate sample prompts with a pipeline folder
    python -m toybox subject robot --sprites FOLDER   # training photos of a held-out object

Only making the model needs the sprites and this package; using the model doesn't.
"""
