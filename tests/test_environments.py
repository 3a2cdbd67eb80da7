"""Adapters in models that other code has changed: patched, offloaded, quantised, copied, compiled, shared layers."""

import copy
import io
import multiprocessing
import pickle
from datetime import timedelta

import pytest
import torch
from accelerate import cpu_offload_with_hook
from conftest import relative, stir, tiny_unet
from diffusers import UNet2DConditionModel
from diffusers.hooks import apply_group_offloading
from diffusers.training_utils import EMAModel
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from test_contract import attach_trained, each_form, each_variant, form_by, unet_input
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from hra_diffusion.adapters import activation, attachment, merging, registry
from hra_diffusion.adapters.attachment import attach, detach
from hra_diffusion.adapters.linear_map import weight_of
from hra_diffusion.adapters.targets import find_targets
from hra_diffusion.errors import UserError


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return tiny_unet().eval()


@pytest.fixture
def expected(unet, method, options):
    """The output of an undisturbed copy with the same adapter."""
    other = copy.deepcopy(unet)
    attach_trained(other, method, options)
    with torch.no_grad():
        return unet_input(other)


def patch_forwards(model):
    for path in find_targets(model):
        layer = model.get_submodule(path)
        layer.forward = (lambda forward: lambda x: forward(x))(layer.forward)


DISTURBANCES = {
    "patched forward": patch_forwards,
    "layerwise casting": lambda model: model.enable_layerwise_casting(torch.bfloat16, torch.float32),
    "group offload": lambda model: apply_group_offloading(
        model, torch.device("cpu"), offload_type="leaf_level", offload_device=torch.device("cpu")
    ),
}
each_disturbed_form = form_by("disturbance", DISTURBANCES)
each_method = pytest.mark.parametrize("method", registry.method_names())


@each_disturbed_form
def test_attach_to_a_disturbed_model(unet, expected, method, options, disturbance):
    DISTURBANCES[disturbance](unet)
    attach_trained(unet, method, options)
    # PiSSA starts from the weight as it is, here rounded to bfloat16
    casting = 0.1 if options.get("init") == "pissa" else 2e-2
    with torch.no_grad():
        assert relative(unet_input(unet), expected) < (casting if "casting" in disturbance else 1e-5)


@each_disturbed_form
def test_disturb_an_adapted_model(unet, expected, method, options, disturbance):
    attach_trained(unet, method, options)
    DISTURBANCES[disturbance](unet)
    with torch.no_grad():
        assert relative(unet_input(unet), expected) < (2e-2 if "casting" in disturbance else 1e-5)


def quantise_by_bitsandbytes(model, kind):
    """Replace the targeted layers by ``kind``; the given model gets the dequantised weights."""
    bnb = pytest.importorskip("bitsandbytes")
    quantised = copy.deepcopy(model)
    for path in find_targets(model):
        layer, (parent, _, leaf) = model.get_submodule(path), path.rpartition(".")
        new = getattr(bnb.nn, kind)(layer.in_features, layer.out_features, bias=layer.bias is not None)
        new.load_state_dict(layer.state_dict())
        setattr(quantised.get_submodule(parent), leaf, new.to("cpu"))
        with torch.no_grad():
            new(torch.randn(1, layer.in_features))  # quantises the weight
            layer.weight.copy_(weight_of(new))
    return quantised


@form_by("kind", ["Linear8bitLt", "Linear4bit"])
def test_layers_quantised_by_bitsandbytes(unet, method, options, kind):
    """They are adapted as their dequantised weights are, also frozen; merging is refused."""
    quantised = quantise_by_bitsandbytes(unet, kind)
    for model in (unet, quantised):
        attach_trained(model, method, options)
    with torch.no_grad():
        expected = unet_input(unet)
        assert relative(unet_input(quantised), expected) < 2e-2
        with activation.frozen(quantised):
            assert relative(unet_input(quantised), expected) < 2e-2
        activation.activate(unet, {})
        assert relative(unet_input(unet), expected) > 5e-3
    with pytest.raises(UserError, match=r"weights are quantised; .*: (Int8Params|Params4bit)"):
        merging.merge(quantised)


@each_variant
def test_writes_to_data_are_noticed(unet, method, options):
    """As diffusers' EMAModel.copy_to makes them."""
    attach_trained(unet, method, options)
    parameters = list(attachment.adapter_parameters(unet, "a").values())
    average = EMAModel([nn.Parameter(torch.randn_like(p) * 0.3) for p in parameters])
    with torch.no_grad():
        unet_input(unet)
        average.copy_to(parameters)
        live = unet_input(unet)
    fresh = copy.deepcopy(unet)
    with torch.no_grad():
        assert relative(live, unet_input(fresh)) < 1e-6


@each_method
@pytest.mark.parametrize("peft_first", [False, True])
def test_beside_a_peft_lora(unet, method, peft_first):
    """Both adapters apply, whichever was first; paths and the adapter's own values are those without PEFT."""
    before, plain = find_targets(unet), copy.deepcopy(unet)
    attach_trained(plain, method, {"rank": 4})
    if not peft_first:
        attach_trained(unet, method, {"rank": 4})
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    assert find_targets(unet) == before
    with torch.no_grad():
        unet.disable_adapters()
        base = unet_input(unet)
        if peft_first:
            attach_trained(unet, method, {"rank": 4})
        assert relative(unet_input(unet), unet_input(plain)) < 1e-5
        unet.enable_adapters()
        both = unet_input(unet)
        assert relative(both, unet_input(plain)) > 1e-4
        assert set(attachment.adapter_parameters(unet, "a")) == set(attachment.adapter_parameters(plain, "a"))
        detach(unet)
        assert relative(unet_input(unet), both) > 1e-4 and relative(unet_input(unet), base) > 1e-4


class Flattened(nn.Module):
    """A model whose layer sees the tokens of all samples as rows."""

    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(8, 8)

    def forward(self, x):
        return self.to_q(x.flatten(0, 1)).unflatten(0, x.shape[:2])


@each_variant
def test_groups_of_samples_whose_tokens_are_flattened(method, options):
    model, x = Flattened(), torch.randn(4, 6, 8)
    attach_trained(model, method, options)
    with torch.no_grad():
        adapted = model(x)
        activation.activate(model, {})
        base = model(x)
        with activation.batch_adapters(model, [({}, 1), ({"a": 1.0}, 1)]):
            mixed = model(x)
    assert relative(mixed, torch.stack([base[0], adapted[1], base[2], adapted[3]])) < 1e-5


@each_form
def test_two_checkpointed_forwards_before_one_backward(unet, method, options):
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(unet).train()
        attach_trained(model, method, options)
        if checkpointing:
            model.enable_gradient_checkpointing()
        (unet_input(model).square().mean() - 0.5 * unet_input(model, 3).mean()).backward()
        gradients.append([p.grad for p in attachment.adapter_parameters(model, "a").values()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@each_variant
def test_a_failed_move_leaves_every_adapter(unet, method, options):
    attach_trained(unet, method, options)
    calls = iter(range(10_000))

    def fail(tensor):
        if next(calls) == 20:
            raise torch.OutOfMemoryError("out of memory")
        return tensor

    before = set(attachment.adapter_parameters(unet, "a"))
    with pytest.raises(torch.OutOfMemoryError):
        unet._apply(fail)
    assert set(attachment.adapter_parameters(unet, "a")) == before


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@form_by("copied", [copy.deepcopy, through_pickle, through_save])
def test_a_copy_is_adapted_and_independent(unet, method, options, copied):
    with torch.no_grad():
        base = unet_input(unet)
        attach_trained(unet, method, options)
        adapted = unet_input(unet)
        twin = copied(unet)
        assert relative(unet_input(twin), adapted) < 1e-6
        detach(twin)
        assert torch.equal(unet_input(twin), base) and relative(unet_input(unet), adapted) < 1e-6


@each_variant
def test_a_vector_has_gradients(method, options):
    model = nn.ModuleDict({"to_q": nn.Linear(8, 8)})
    attach_trained(model, method, options)
    model["to_q"](torch.randn(8)).square().sum().backward()
    trained = [p for p in attachment.adapter_parameters(model, "a").values() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)


@each_variant
def test_a_layer_that_is_called_twice(method, options):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.to_q = nn.Linear(8, 8)

        def forward(self, x):
            return self.to_q(self.to_q(x))

    model = Twice()
    attach_trained(model, method, options)
    x = torch.randn(3, 8)
    with torch.no_grad():
        adapted = model(x)
    trained = model(x)
    assert relative(trained.detach(), adapted) < 1e-5
    trained.square().sum().backward()


@each_variant
def test_tied_layers_are_adapted_once(method, options):
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": nn.ModuleDict({"to_q": shared}), "b": nn.ModuleDict({"to_q": shared})})
    assert attach(model, method, options) == ["a.to_q"]


@each_form
def test_functional_call_uses_the_given_parameters(unet, method, options):
    attach_trained(unet, method, options)
    with torch.no_grad():
        adapted = unet_input(unet)
        zeros = {key: torch.zeros_like(p) for key, p in unet.named_parameters() if "@" in key and "scale" not in key}
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        text = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(2))
        given = torch.func.functional_call(unet, zeros, (x, torch.full((2,), 10), text)).sample
        own = unet(x, torch.full((2,), 10), text).sample
    assert relative(given, own) > 1e-4 and torch.isfinite(given).all() and relative(unet_input(unet), adapted) < 1e-6


def one_block_unet():
    """The smallest UNet: compiling takes time for every operation."""
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("UpBlock2D",)}
    sizes = {"block_out_channels": (16,), "layers_per_block": 1, "attention_head_dim": 4, "norm_num_groups": 8}
    torch.manual_seed(0)
    return UNet2DConditionModel(sample_size=8, cross_attention_dim=32, mid_block_type=None, **blocks, **sizes).eval()


def with_all_methods():
    """A model with an active adapter of every method on its cross-attention, and the adapters' parameters."""
    model, names = one_block_unet(), registry.method_names()
    for method in names:
        attach(model, method, {"rank": 4}, name=method, targets=r".*attn2\.to_(q|k|v|out\.0)")
        stir(attachment.adapter_parameters(model, method).values())
    activation.activate(model, dict.fromkeys(names, 1.0))
    return model, parameters_of_all(model)


def parameters_of_all(model):
    return {f"{n}.{k}": p for n in registry.method_names() for k, p in attachment.adapter_parameters(model, n).items()}


GROUPS = [({name: 1.0}, 1) for name in registry.method_names()]
"""One sample for every method."""


def test_training_compiles_without_a_graph_break():
    """Outputs and gradients are those of eager mode, with an adapter of another method for each sample."""
    model, parameters = with_all_methods()
    torch._dynamo.reset()
    compiled, results = torch.compile(model, fullgraph=True, backend="aot_eager"), []
    with activation.batch_adapters(model, GROUPS):
        for called in (model, compiled):
            model.zero_grad()
            output = unet_input(called, len(GROUPS))
            output.square().mean().backward()
            results.append([output.detach(), *(p.grad for p in parameters.values())])
    for eager, found in zip(*results, strict=True):
        torch.testing.assert_close(found, eager)


@pytest.mark.parametrize("method", ["lora", "shoft"])
def test_inference_compiles_once_for_all_strengths(method):
    """Frozen adapters of all methods but SHOFT have the form of a LoRA."""
    unet = one_block_unet()
    attach_trained(unet, method, {"rank": 4})
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("eager")
    compiled = torch.compile(unet, fullgraph=True, backend=graphs)
    with torch.no_grad(), activation.frozen(unet):
        for strength in (1.0, 0.5, 0.3):
            activation.activate(unet, {"a": strength})
            assert relative(unet_input(compiled), unet_input(unet)) < 1e-5
        with activation.batch_adapters(unet, [({"a": 1.0}, 1), ({}, 1)]):
            assert relative(unet_input(compiled), unet_input(unet)) < 1e-5
    assert graphs.frame_count == 2, "one for the same adapter on all samples, one with an adapter per sample"


def test_repeated_blocks_compile():
    model, parameters = with_all_methods()
    with activation.batch_adapters(model, GROUPS):
        eager = unet_input(model, len(GROUPS))
        torch._dynamo.reset()
        model.compile_repeated_blocks(fullgraph=True, backend="eager")
        compiled = unet_input(model, len(GROUPS))
    compiled.square().mean().backward()
    assert relative(compiled.detach(), eager.detach()) < 1e-5
    assert all(p.grad is not None for p in parameters.values())


@each_form
def test_a_strength_below_one_outside_frozen_compiles(unet, method, options):
    """Here with gradients through the other layers; the power of a rotation is one operation."""
    model, x = Flattened(), torch.randn(3, 2, 8, requires_grad=True)
    attach_trained(model, method, options)
    activation.activate(model, {"a": 0.5})
    for part in (model, model.to_q):  # a layer alone prepares its own factors
        torch._dynamo.reset()
        compiled = torch.compile(part, fullgraph=True, backend="eager")(x)
        torch.testing.assert_close(compiled, part(x))
        compiled.sum().backward()


@each_variant
def test_reentrant_checkpointing(method, options):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.ModuleDict({"to_q": nn.Linear(8, 8)})["to_q"] for _ in range(3)))
        attach(model, method, options, name="a", targets=".*")
        stir(attachment.adapter_parameters(model, "a").values())
        x = torch.randn(5, 8, requires_grad=True)

        def forward(x, model=model, checkpointing=checkpointing):
            for layer in model:
                x = checkpoint(layer, x, use_reentrant=True) if checkpointing else layer(x)
            return x

        model.forward = forward
        model(x).square().mean().backward()
        gradients.append([p.grad for p in attachment.adapter_parameters(model, "a").values()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@each_form
def test_channels_last(unet, expected, method, options):
    attach_trained(unet.to(memory_format=torch.channels_last), method, options)
    with torch.no_grad():
        assert relative(unet_input(unet), expected) < 1e-5


@each_variant
def test_convolutions_in_channels_last_and_autocast_have_gradients(unet, method, options):
    attach(unet.to(memory_format=torch.channels_last), method, options, name="a", targets="attention+conv")
    with torch.autocast("cpu", torch.bfloat16):
        unet_input(unet).square().mean().backward()
    trained = [p for p in attachment.adapter_parameters(unet, "a").values() if p.requires_grad]
    assert all(torch.isfinite(p.grad).all() for p in trained)


def test_model_offload(unet, expected_of_hra):
    attach_trained(unet, "hra", {"rank": 4})
    _, hook = cpu_offload_with_hook(unet, torch.device("cpu"))
    with torch.no_grad():
        assert relative(unet_input(unet), expected_of_hra) < 1e-5
        hook.offload()
        with activation.frozen(unet):
            assert relative(unet_input(unet), expected_of_hra) < 1e-5


@pytest.fixture
def expected_of_hra(unet):
    other = copy.deepcopy(unet)
    attach_trained(other, "hra", {"rank": 4})
    with torch.no_grad():
        return unet_input(other)


def train_distributed(rank, folder):
    """One process's gradients of half a batch, by DDP and by FSDP."""
    place, limit = f"file://{folder}/rendezvous", timedelta(minutes=3)
    torch.distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2, timeout=limit)
    for kind, wrap in (("ddp", DistributedDataParallel), ("fsdp", fully_shard)):
        model, _ = with_all_methods()
        x, text = torch.randn(2, 4, 8, 8)[rank : rank + 1], torch.randn(2, 6, 32)[rank : rank + 1]
        wrapped = wrap(model)
        wrapped(x, torch.full((1,), 10), text).sample.square().mean().backward()
        gradients = {
            key: p.grad.full_tensor() if kind == "fsdp" else p.grad for key, p in parameters_of_all(model).items()
        }
        save_file({key: value.contiguous() for key, value in gradients.items()}, f"{folder}/{kind}{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_two_processes_share_the_gradients(tmp_path):
    """This process is one of them."""
    other = multiprocessing.get_context("spawn").Process(target=train_distributed, args=(1, str(tmp_path)))
    other.start()
    train_distributed(0, str(tmp_path))
    other.join()
    model, parameters = with_all_methods()
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 32)
    model(x, torch.full((2,), 10), text).sample.square().mean().backward()
    for file in ("ddp0", "ddp1", "fsdp0", "fsdp1"):
        found = load_file(tmp_path / f"{file}.safetensors")
        for key, parameter in parameters.items():
            torch.testing.assert_close(
                found[key], parameter.grad, rtol=1e-3, atol=1e-7, msg=lambda m, w=(file, key): f"{w}: {m}"
            )


@pytest.mark.parametrize("method", [name for name in registry.method_names() if name not in ("oft", "boft")])
def test_dropout_acts_in_training_alone(method):
    model, x = nn.ModuleDict({"to_q": nn.Linear(16, 16)}), torch.randn(64, 16)
    attach_trained(model, method, {"rank": 4, "dropout": 0.5})
    layer = model["to_q"]
    outputs = [layer(x).detach() for _ in range(200)]
    layer.eval()
    with torch.no_grad():
        without = layer(x)
        assert torch.equal(layer(x), without)
    assert relative(outputs[0], outputs[1]) > 1e-3
    if method in ("lora", "moslora", "hra"):  # a single product: dropout keeps its mean
        assert relative(torch.stack(outputs).mean(0), without) < 5e-2


@pytest.mark.parametrize("kind", ["torchao", "quanto", "gguf"])
@each_method
def test_layers_quantised_by_other_libraries(unet, method, kind):
    quantised = copy.deepcopy(unet)
    quantise_by(kind, quantised)
    for path in find_targets(unet):
        with torch.no_grad():
            unet.get_submodule(path).weight.copy_(weight_of(quantised.get_submodule(path)))
    for model in (unet, quantised):
        attach_trained(model, method, {"rank": 4})
    with torch.no_grad():
        expected = unet_input(unet)
        assert relative(unet_input(quantised), expected) < 2e-2
        with activation.frozen(quantised):
            assert relative(unet_input(quantised), expected) < 2e-2
    with pytest.raises(UserError, match="weights are quantised"):
        merging.merge(quantised)


def quantise_by(kind, model):
    if kind == "torchao":
        torchao = pytest.importorskip("torchao.quantization")
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig(), lambda _, path: path in find_targets(model))
    elif kind == "quanto":
        quanto = pytest.importorskip("optimum.quanto")
        quanto.quantize(model, weights=quanto.qint8, include=find_targets(model))
        quanto.freeze(model)
    else:
        gguf = pytest.importorskip("gguf")
        from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

        for path in find_targets(model):
            layer, (parent, _, leaf) = model.get_submodule(path), path.rpartition(".")
            codes = gguf.quants.quantize(layer.weight.detach().numpy(), gguf.GGMLQuantizationType.Q8_0)
            new = GGUFLinear(layer.in_features, layer.out_features, layer.bias is not None, torch.float32)
            new.weight = GGUFParameter(torch.from_numpy(codes), quant_type=gguf.GGMLQuantizationType.Q8_0)
            new.bias = layer.bias
            setattr(model.get_submodule(parent), leaf, new)
