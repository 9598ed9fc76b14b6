"""The parts of novelty scores against their definition, on test sets of any size."""

import pytest
import torch
from cases import DTYPES, assert_close
from pkd_kernels import NOVELTY_PARTS, novelty_parts, novelty_score, reference

from bench.profiling import measured


def inputs(images, stack, latents, pixels, shared, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = [(images, stack * latents)] * 2
    shapes += [(images, (1 if shared else stack) * pixels), (images, stack * pixels)]
    return [torch.randn(*s, generator=generator).to(device, dtype) for s in shapes]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("images", "stack", "latents", "pixels", "shared"),
    [
        (1, 1, 256, 1024, False),
        (3, 2, 257, 3072, True),
        (3, 2, 5, 1025, False),
        (2, 4, 700, 3, True),
    ],
)
def test_equals_definition(device, images, stack, latents, pixels, shared, dtype):
    tensors = inputs(images, stack, latents, pixels, shared, dtype, device)
    expected = reference.novelty_parts(*map(torch.Tensor.double, tensors), stack=stack)
    assert expected.shape == (images, stack, len(NOVELTY_PARTS))
    assert_close([novelty_parts(*tensors, stack=stack)], [expected], dtype)


def test_the_latent_part_is_the_novelty_score(device):
    tensors = inputs(3, 2, 20, 8, shared=True, dtype=torch.float64, device=device)
    parts = novelty_parts(*tensors, stack=2)
    torch.testing.assert_close(parts[..., 0], novelty_score(*tensors[:2], stack=2))


def test_shared_images_give_the_parts_of_repeated_ones(device):
    z1, z2, x, xh = inputs(3, 2, 20, 8, shared=True, device=device)
    parts = novelty_parts(z1, z2, x, xh, stack=2)
    assert torch.equal(parts, novelty_parts(z1, z2, x.repeat(1, 2), xh, stack=2))


def test_one_launch_that_reads_once_and_has_no_gradient(device):
    tensors = [t.requires_grad_() for t in inputs(3, 2, 20, 30, shared=True, device=device)]
    with measured() as traffic:
        parts = novelty_parts(*tensors, stack=2)
    assert not parts.requires_grad
    assert traffic.launches == ["novelty_parts"]
    if device == "cpu":
        loaded = {"z1_ptr": 120, "z2_ptr": 120, "x_ptr": 180, "xh_ptr": 180}
        assert traffic.loaded == {f"novelty_parts.{name}": n for name, n in loaded.items()}
        assert traffic.stored == {"novelty_parts.parts_ptr": 18}


@pytest.mark.parametrize("wrong", [0, 1, 2, 3])
def test_other_shapes_are_refused(device, wrong):
    tensors = inputs(3, 2, 4, 6, shared=False, device=device)
    tensors[wrong] = tensors[wrong][:, :3]
    with pytest.raises(ValueError, match=r"shapes differ|does not fit"):
        novelty_parts(*tensors, stack=2)


def test_batches_of_different_size_are_refused(device):
    z1, z2, x, xh = inputs(3, 2, 4, 6, shared=False, device=device)
    with pytest.raises(ValueError, match="batch sizes differ: 3 and 2 images"):
        novelty_parts(z1, z2, x[:2], xh[:2], stack=2)
