"""A mixer of three backends, for whatever has to do with choosing one: they differ in name alone."""

from torch import Tensor, nn

from stmbench import catalog
from stmbench.mixers.backends import PLAIN, Backend, BackendMixer, Call
from stmbench.record import Macs


class Choosy(BackendMixer):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.backend(x).run(self, x)

    def plain(self, x: Tensor) -> Tensor:
        return self.proj(x)

    def macs(self, height: int, width: int) -> Macs:
        return Macs(height * width * self.dim**2)

    backends = (
        Backend("absent", "never, anywhere", plain, lambda call: "it is not here"),
        Backend("quick", "without gradients", plain, lambda call: _no_gradients(call)),
        Backend(PLAIN, "always", plain),
    )


def _no_gradients(call: Call) -> str:
    return "it has no backward pass" if call.grad else ""


ROW = catalog.Mixer(
    name="choosy",
    title="a choosy mixer",
    target="choosy:Choosy",
    source="Nobody 2026",
    scales=catalog.mixers()["dwconv"].scales,
)
