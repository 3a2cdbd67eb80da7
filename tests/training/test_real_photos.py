"""Real photos through buckets, masks, captions and validation, with a stop. tests/slow does so at full size."""

from conftest import everything, relative, tiny_pipe
from real_photos import SETTINGS, phone_photos, train_with_a_stop

from hra_diffusion import interop, pipeline
from training import config as configs


def test_real_photos_train_resume_exactly_and_export(base_folder, tmp_path):
    photos = {"photos": [str(phone_photos(tmp_path / "dog", 192))]}
    config = configs.parse(SETTINGS | photos | {"base": str(base_folder), "resolution": 128, "learning_rate": 1e-2})
    adapter, pipe = train_with_a_stop(config, tmp_path), tiny_pipe()
    pipeline.load(pipe, adapter)
    ours = everything(pipe)
    for format in ("kohya", "diffusers"):
        done = interop.export(pipe, "Rex", format, tmp_path / f"{format}.safetensors")
        other = tiny_pipe()
        assert relative(everything(other), ours) > 1e-3
        other.load_lora_weights(str(done.path))
        assert relative(everything(other), ours) < 1e-5, format
