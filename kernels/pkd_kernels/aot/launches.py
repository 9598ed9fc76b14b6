"""Record every distinct launch of every kernel: the launchers run on tensors without storage."""

import itertools
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch

from pkd_kernels.reference import ConvLayer, GANLayers, GANOutput, accumulator

KERNEL_MODULES = (
    "adam",
    "conv.backward",
    "conv.forward",
    "history",
    "indexing",
    "losses.discriminator",
    "losses.gan",
    "losses.generator",
    "losses.saved_gradients",
    "novelty",
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Elements of image, latent and feature: those of the networks, and sizes that no vector divides.
SIZES = [(1024, 256, 64), (3072, 256, 4096), (35, 9, 17), (300, 9, 17)]
SIZES += [(3075, 257, 4099), (256, 256, 256), (1, 1, 1)]
# (type, widths, stack): all widths in the type that networks train in, one in the other types.
NETWORKS = [(torch.float32, w, 1) for w in ((1, 2, 4), (2, 4, 8), (8, 16, 64), (64, 128, 256))]
NETWORKS += [(dtype, (8, 16, 64), 1) for dtype in DTYPES if dtype != torch.float32]
# Stacks, whose layers are matrix products, with and without TF32.
NETWORKS += [(torch.float32, w, 30) for w in ((8, 16, 64), (64, 128, 256))]
NETWORKS += [(torch.float64, (8, 16, 64), 30)]
_POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


Path = tuple[int, ...]  # position of an argument, and within a tuple of arguments


class Launch(NamedTuple):
    """Input of the compiler for a launch; equal launches compile to equal machine code.

    Attributes:
        kernel: name of the kernel without "_kernel".
        signature: (argument, type) of every argument; tuples have tuples of types.
        constants: (path, value) of every compile-time constant.
        aligned: paths of the arguments that 16 divides.
        options: (name, value) of every option of the launch, such as num_warps.
    """

    kernel: str
    signature: tuple[tuple[str, Any], ...]
    constants: tuple[tuple[Path, object], ...]
    aligned: tuple[Path, ...]
    options: tuple[tuple[str, int], ...]

    @property
    def pointers(self) -> list[str]:
        """Types of all tensors, in order."""
        return [t for t in _leaves([kind for _, kind in self.signature]) if t.startswith("*")]


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def kernels() -> dict[str, tuple[ModuleType, str]]:
    """Every kernel: its name without "_kernel" -> (module that launches it, name in the module)."""
    modules = [import_module(f"pkd_kernels.{name}") for name in KERNEL_MODULES]
    return {
        name.removesuffix("_kernel"): (module, name)
        for module in modules
        for name in vars(module)
        if name.endswith("_kernel")
    }


def launch_of(
    kernel_name: str,
    kernel: Any,
    args: tuple[Any, ...],
    keywords: dict[str, Any],
    is_aligned: Callable[[torch.Tensor], bool],
) -> Launch:
    """The launch as the just-in-time compiler specialises it: on None, 1 and multiples of 16.

    Args:
        kernel_name: name of the kernel without "_kernel".
        kernel: the Triton function.
        args: positional arguments: tensors, integers, None, and tuples of tensors and None.
        keywords: compile-time constants and options.
        is_aligned: whether 16 divides a tensor's address.
    """
    names = [parameter.name for parameter in kernel.params]
    constants: dict[Path, object] = {}
    aligned: list[Path] = []

    def kind_of(value: Any, path: Path) -> Any:
        if isinstance(value, tuple):
            return tuple(kind_of(item, (*path, i)) for i, item in enumerate(value))
        specialised = not kernel.params[path[0]].do_not_specialize
        if value is None or (isinstance(value, int) and value == 1 and specialised):
            constants[path] = value
            return "constexpr"
        if (
            is_aligned(value)
            if isinstance(value, torch.Tensor)
            else value % 16 == 0 and specialised
        ):
            aligned.append(path)
        return _POINTERS[value.dtype] if isinstance(value, torch.Tensor) else "i32"

    signature = {names[i]: kind_of(value, (i,)) for i, value in enumerate(args)}
    for name in names[len(args) :]:
        signature[name], constants[(names.index(name),)] = "constexpr", keywords[name]
    options = tuple((k, v) for k, v in keywords.items() if k not in names)
    return Launch(
        kernel_name, tuple(signature.items()), tuple(constants.items()), tuple(aligned), options
    )


def recorded_launches() -> list[Launch]:
    """Every distinct launch of every op, over types, reductions and sizes.

    Each has pointers that 16 divides; pointers that it does not, as views may have; and a mixture
    of both. Layers have the latter two only in the type that networks are trained in.
    """
    launches: dict[Launch, None] = {}

    def recorder(kernel_name: str, kernel: Any) -> mock.MagicMock:
        def record(*args: Any, **keywords: Any) -> None:
            call = kernel_name, kernel, args, keywords
            launches[launch_of(*call, lambda tensor: True)] = None
            if _has_unaligned_code(*call):
                launches[launch_of(*call, lambda tensor: False)] = None
                turns = itertools.cycle((True, False, False))
                launches[launch_of(*call, lambda tensor: next(turns))] = None

        fake = mock.MagicMock()
        fake.__getitem__.return_value = record
        return fake

    patches = [
        mock.patch.object(module, name, recorder(kernel_name, getattr(module, name)))
        for kernel_name, (module, name) in kernels().items()
    ]
    for patch in patches:
        patch.start()
    try:
        _call_ops()
        _call_networks()
    finally:
        for patch in patches:
            patch.stop()
    return list(launches)


def _has_unaligned_code(
    kernel_name: str, kernel: Any, args: tuple[Any, ...], _: dict[str, Any]
) -> bool:
    """Whether the launch is also compiled for unaligned pointers.

    Sizes that 16 does not divide rule vectors out already: the code does not depend on pointers.
    """
    if not kernel_name.startswith("conv_"):
        arguments = zip(kernel.params, args, strict=False)
        sizes = [v for p, v in arguments if isinstance(v, int) and not p.do_not_specialize]
        return all(size % 16 == 0 or size == 1 for size in sizes)
    first = next(t for t in _leaves(list(args)) if isinstance(t, torch.Tensor))
    return first.dtype == torch.float32 and args[-2:] == (1, 1)  # the batch and the stack


def _op(name: str, module: str) -> Callable[..., Any]:
    return getattr(import_module(f"pkd_kernels.{module}"), name)


def _call_ops() -> None:
    """Call all ops but the layers, forward and backward."""
    generator_loss = _op("generator_loss", "losses.generator")
    discriminator_loss = _op("discriminator_loss", "losses.discriminator")
    gan_losses = _op("gan_losses", "losses.gan")
    novelty_score = _op("novelty_score", "novelty")
    novelty_parts = _op("novelty_parts", "novelty")
    for dtype, (image, latent, feature) in itertools.product(DTYPES, SIZES):

        def empty(size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(2, size, dtype=dtype, device="meta", requires_grad=True)

        x, tx, xh = empty(image).detach(), empty(image).detach(), empty(image)
        z1, z2, f = empty(latent), empty(latent), empty(feature)
        teacher = (z1.detach(), tx, z2.detach())
        weights = torch.empty(6, device="meta")
        for reduction in ("mean", "norm"):
            total, terms = generator_loss(
                x, xh, z1, z2, f.detach(), f, teacher=teacher, weights=weights, reduction=reduction
            )
            total.sum().backward()
            total, loss, terms = gan_losses(
                *(x, xh, z1, z2, f.detach(), f, f, f),
                teacher=teacher,
                weights=weights,
                reduction=reduction,
            )
            (total.sum() + loss.sum()).backward()
        loss = discriminator_loss(f, f)
        loss.sum().backward()
        novelty_score(z1, z2)
        novelty_parts(z1, z2, x, xh)
        _call_optimizer(empty(4096).detach()[0])
        _call_gather([*teacher, x.to(torch.uint8)], dtype)
        _call_record_step(total, loss, terms)


def _call_optimizer(flat: torch.Tensor) -> None:
    model = torch.empty(2, device="meta")
    corrections = flat.new_empty(2, 2, dtype=accumulator(flat))
    models = model, model, model.bool(), corrections
    _op("adam_prepare", "adam")(*models, betas=(0.5, 0.999))
    _op("adam_step", "adam")(
        *(flat,) * 4,
        *models,
        sizes=(2048,),
        betas=(0.5, 0.999),
        eps=1e-8,
    )


def _call_gather(tables: list[torch.Tensor], dtype: torch.dtype) -> None:
    order = torch.empty(3, 1, 2, dtype=torch.int64, device="meta")
    for rows in (tables, tables[-1:]):
        first = [order[0, 0]] * len(rows)
        _op("launch", "indexing")(rows, first, order, order[0, 0, :1], dtype)


def _call_record_step(total: torch.Tensor, loss: torch.Tensor, terms: torch.Tensor) -> None:
    one = torch.empty(1, dtype=torch.int64, device="meta")  # these losses are of one model
    for networks in (1, 2):
        _op("record_step", "history")(
            [(total, loss, terms)] * networks,
            total.new_empty(3, 1),
            one,
            history=total.new_empty(3, 1, networks, 2 + terms.shape[1]),
            counter=one,
            rate=total,
            active=one.bool(),
            step=total,
            corrections=total.new_empty(2, 1),
            betas=(0.5, 0.999),
        )


def _call_networks() -> None:
    """A generator's twelve layers and a discriminator's four, forward and backward."""
    for dtype, widths, stack in NETWORKS:
        for precision in ("ieee", "tf32") if stack > 1 else ("ieee",):
            switch = mock.Mock(fp32_precision=precision)
            with mock.patch.object(torch.backends.cuda, "matmul", switch):
                for batch in (1, 2) if stack == 1 else (1,):
                    step_on_meta_tensors(dtype, widths, stack, batch)


def step_on_meta_tensors(
    dtype: torch.dtype, widths: tuple[int, int, int], stack: int, batch: int = 1
) -> None:
    """Forward and backward pass of a stack of GANs through the kernels' launchers."""
    _Network(dtype, widths, stack).call(batch)


class _Network(NamedTuple):
    """The layers of a stack of networks."""

    dtype: torch.dtype
    widths: tuple[int, int, int]
    stack: int

    def call(self, batch: int) -> None:
        gan_pass = _op("gan_pass", "conv.gan")
        image = 3 if self.widths[0] in (8, 64) else 1
        encoder, reencoder = (self._encoder(image, 256) for _ in range(2))
        gan = GANLayers(encoder, self._decoder(image), reencoder, self._encoder(image, 1))
        x = self._empty(batch, self.stack * image, 32, 32).detach()
        (output,) = gan_pass(x, [gan], stack=self.stack)
        _backward(output)

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype, device="meta", requires_grad=True)

    def _layer(self, inputs: int, outputs: int, norm: bool, *options: Any) -> ConvLayer:
        first, second = (inputs, outputs) if options[2] else (outputs, inputs)
        gamma, beta = (self._empty(self.stack * outputs) if norm else None for _ in range(2))
        return ConvLayer(self._empty(self.stack * first, second, 4, 4), gamma, beta, *options)

    def _encoder(self, image: int, outputs: int) -> list[ConvLayer]:
        down = (2, 1, False, "leaky_relu")
        pairs = itertools.pairwise((image, *self.widths))
        layers = [self._layer(*pair, True, *down) for pair in pairs]
        return [*layers, self._layer(self.widths[-1], outputs, False, 1, 0, False, "none")]

    def _decoder(self, image: int) -> list[ConvLayer]:
        up = (2, 1, True, "relu")
        a, _, c = self.widths
        root = self._layer(256, c, True, 1, 0, True, "relu")
        hidden = [self._layer(*pair, True, *up) for pair in itertools.pairwise(self.widths[::-1])]
        return [root, *hidden, self._layer(a, image, False, 2, 1, True, "tanh")]


def _backward(outputs: GANOutput) -> None:
    used = [y for y in outputs if y is not None and y.requires_grad]
    torch.autograd.backward(used, [torch.empty_like(y) for y in used])
