"""Hidden states of prompts with weights, or longer than a text encoder's maximum length, by compel.

compel (github.com/damian0815/compel) encodes one prompt at a time, in windows of the encoder's length that end between
words, and moves each weighted token's state away from (above 1) or towards (below 1) that of a prompt without it.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hra_diffusion.libraries import only_errors_logged
from hra_diffusion.models.prompts import Fragment


def hidden_states(
    pipe: Any, encoder: str, tokenizer: str, prompts: Sequence[Sequence[Fragment]], kind: str
) -> list[Tensor]:
    """Return the hidden states (1, windows · L, d) of each prompt, padded to the longest with the empty prompt's.

    ``encoder``, ``tokenizer``: their names on the pipeline. ``kind``: a name in compel's ReturnedEmbeddingsType.
    """
    from compel import Compel, ReturnedEmbeddingsType, SplitLongTextMode
    from compel.prompt_parser import Conjunction, FlattenedPrompt

    tokenize = getattr(pipe, tokenizer)
    compel = Compel(
        tokenize,
        getattr(pipe, encoder),
        truncate_long_prompts=False,
        returned_embeddings_type=ReturnedEmbeddingsType[kind],
        split_long_text_mode=SplitLongTextMode.WORDS,
        device=pipe.device,
    )
    states = []
    with only_errors_logged():  # the tokenizer's warning of long texts does not apply: compel splits them
        for prompt in prompts:
            texts = [(pipe.maybe_convert_prompt(text, tokenize), weight) for text, weight in prompt]
            parsed = Conjunction([FlattenedPrompt(texts)])
            states.append(compel.build_conditioning_tensor_for_conjunction(parsed)[0])
    return compel.pad_conditioning_tensors_to_same_length(states)
