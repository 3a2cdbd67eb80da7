"""A tiny captioning model."""

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "dog", "on", "grass", "teapot", "the", "snow")


def tiny_blip(folder):
    """A tiny random BLIP with its processor, saved in a folder."""
    torch.manual_seed(0)
    text = BlipTextConfig(vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                          num_attention_heads=2, encoder_hidden_size=16, projection_dim=16, bos_token_id=5,
                          eos_token_id=3, sep_token_id=3, pad_token_id=0, max_position_embeddings=80)  # fmt: skip
    vision = BlipVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                              image_size=32, patch_size=16, projection_dim=16)  # fmt: skip
    model = BlipForConditionalGeneration(BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    size = {"height": 32, "width": 32}
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), additional_special_tokens=["[DEC]"])
    BlipProcessor(BlipImageProcessorPil(size=size), tokenizer).save_pretrained(folder)
    return folder
