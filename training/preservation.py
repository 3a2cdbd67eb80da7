"""Base-output preservation: the base model's own output for class captions as the target of prior preservation.

Each batch of photos is trained twice: with its captions, and with the class noun in place of the subject, at the same
noisy latents and timesteps. The target of the second half is what the base model predicts for it, so that no class
images are needed. Sources: "Diff Output Preservation" of ai-toolkit (ostris/ai-toolkit 27a03a9, SDTrainer.py) and
"prior prediction" of OneTrainer (Nerogar/OneTrainer 23df383, GenericTrainer.py).
"""

import contextlib

import torch
from torch import Tensor

from hra_diffusion.adapters import activation
from training.batch import Batch
from training.session.state import Session


def preservation_target(session: Session, batch: Batch) -> Tensor:
    """Return the targets of a batch, with those of its second half predicted by the base model.

    Without gradients and before the forward pass of the adapter, whose prepared factors gradient checkpointing needs.
    """
    count = len(batch.latents) // 2
    text = {key: value[count:] for key, value in batch.text.items()}
    with torch.no_grad(), contextlib.ExitStack() as stack:
        for model in session.trained_components.values():
            activation.set_rank_shares(model, None)  # of the previous step, for a batch of another size
            stack.enter_context(activation.batch_adapters(model, [({}, count)]))
        prediction = session.denoiser(batch.latents[count:], batch.timesteps[count:], text)
    return torch.cat([batch.target[:count], prediction.to(batch.target)])
