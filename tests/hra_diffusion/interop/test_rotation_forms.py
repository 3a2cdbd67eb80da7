"""OFT files of kohya and OneTrainer, imported by the formula of the program."""

import pytest
import torch
from conftest import relative
from safetensors.torch import save_file

from hra_diffusion import interop
from hra_diffusion.adapters import targets


def cayley(skew):
    return (torch.eye(len(skew)) + skew) @ torch.linalg.inv(torch.eye(len(skew)) - skew)


def test_kohyas_oft(pipe, tmp_path):
    """networks/oft.py of sd-scripts 48d368fa. Blocks of outputs; alpha · d_out limits the norm of all blocks."""
    path = targets.find_targets(pipe.unet)[0]
    weight = pipe.unet.get_submodule(path).weight.detach()
    blocks = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    name = f"oft_unet_{path.replace('.', '_')}"
    save_file({f"{name}.oft_blocks": blocks, f"{name}.alpha": torch.tensor(0.05)}, tmp_path / "oft.safetensors")
    skew = blocks - blocks.mT
    skew = skew * (0.05 * len(weight) / skew.norm())
    expected = torch.block_diag(*(cayley(block) for block in skew)).mT @ weight
    imported, _, report = interop.parse_adapter(pipe, tmp_path / "oft.safetensors")
    assert report.used == report.keys == 2
    change = imported.tensors[f"unet.{path}.up"] @ imported.tensors[f"unet.{path}.down"]
    assert relative(weight + change, expected) < 1e-5


@pytest.mark.parametrize(
    "path", ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"]
)
@pytest.mark.parametrize("scaled", [False, True])
def test_onetrainers_oft(path, scaled, pipe, tmp_path):
    """Source: modules/module/oft_utils.py and LoRAModule.py of OneTrainer 23df3832.

    Five terms of the series; vectors are divided by 2·√(size − 1) if the marker is present. R rotates the input of a
    linear layer, and the weight of a convolution.
    """
    weight = pipe.unet.get_submodule(path).weight.detach().flatten(1)
    vectors = torch.randn(weight.shape[1] // 4, 6, generator=torch.Generator().manual_seed(0)) / 9
    name = f"lora_unet_{path.replace('.', '_')}.oft_R"
    marker = {f"{name}.scaled_oft": torch.tensor(True)} if scaled else {}
    save_file({f"{name}.weight": vectors} | marker, tmp_path / "oft.safetensors")
    rotations = []
    for vector in vectors / (2 * 3**0.5 if scaled else 1):
        s = torch.zeros(4, 4)
        s[*torch.triu_indices(4, 4, 1)] = vector
        s = s - s.mT
        rotations.append(torch.eye(4) + 2 * s + 2 * s @ s + 2 * s @ s @ s + s @ s @ s @ s)
    turn = torch.block_diag(*rotations)
    imported, _, report = interop.parse_adapter(pipe, tmp_path / "oft.safetensors")
    assert report.used == report.keys
    change = imported.tensors[f"unet.{path}.up"] @ imported.tensors[f"unet.{path}.down"]
    assert relative(weight + change, weight @ (turn if "conv" in path else turn.mT)) < 1e-5
