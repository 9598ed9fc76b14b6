"""torch.compile: the losses and the score are operators of one graph, with equal results."""

import torch
from cases import Sizes, make_inputs
from pkd_kernels import discriminator_loss, generator_loss, novelty_score

SIZES = Sizes(2, 3, 8, 4, 5)


def losses(x, xh, z1, z2, f_real, f_fake, t1, tx, t2, weights, real, fake):
    xh, z1 = torch.tanh(xh), 2 * z1
    total, terms = generator_loss(
        x, xh, z1, z2, f_real, f_fake, teacher=(t1, tx, t2), weights=weights, stack=3
    )
    d_loss = discriminator_loss(real * 3, fake, stack=3)
    return total * 2, terms, d_loss, novelty_score(z1, z2, stack=3)


def run(function, arguments: list[torch.Tensor]) -> list[torch.Tensor]:
    outputs = function(*arguments)
    leaves = [t for t in arguments if t.requires_grad]
    scalar = sum((o * (i + 2)).sum() for i, o in enumerate(outputs) if o.requires_grad)
    return [*(o.detach() for o in outputs), *torch.autograd.grad(scalar, leaves)]


def test_losses_compile_into_one_graph(device):
    inputs = make_inputs(SIZES, torch.float32, device)
    arguments = [*inputs[:10], *(torch.randn(2, 3, device=device) for _ in range(2))]
    for i in (1, 2, 3, 5, 10, 11):
        arguments[i].requires_grad_()
    expected = run(losses, arguments)
    compiled = run(torch.compile(losses, fullgraph=True, backend="aot_eager"), arguments)
    for a, b in zip(compiled, expected, strict=True):
        assert torch.equal(a, b)
