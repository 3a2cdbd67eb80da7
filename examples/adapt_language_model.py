"""Attach HRA to a causal language model and train it on a line of text."""

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hra_diffusion as hra
from hra_diffusion.adapters.attachment import adapter_parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()

    torch.manual_seed(0)
    # a small model with random weights; LlamaForCausalLM.from_pretrained("…") works the same way
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=128, initializer_range=0.2, **size))
    layers = hra.attach(model, "hra", {"rank": 8}, name="poet", targets="attention+feed-forward")
    parameters = adapter_parameters(model, "poet")
    print(f"{len(layers)} layers adapted, {sum(p.numel() for p in parameters.values()):,} trainable values")

    tokens = torch.tensor([list(b"the quick brown fox jumps over the lazy dog")])
    optimizer = torch.optim.AdamW(parameters.values(), lr=5e-2, weight_decay=0.0)
    for step in range(given.steps):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == given.steps - 1:
            print(f"step {step}: loss {loss.item():.3f}")

    hra.detach(model)  # the model is what it was before


if __name__ == "__main__":
    main()
