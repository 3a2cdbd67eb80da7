"""The server of ``hra-diffusion serve``: many users' adapters on one base model, in OpenAI's form."""
