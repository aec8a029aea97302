"""BatchNorm over processes: one process's own, and where several share a batch."""

import torch
from torch import nn

from stmbench.nn.sync_norm import SyncBatchNorm, synchronise


def test_in_one_process_it_is_batch_norm_with_its_gradients_and_statistics() -> None:
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(5).double()
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours = nn.BatchNorm2d(5).double()
    ours.load_state_dict(theirs.state_dict())
    synchronise(ours)
    assert isinstance(ours, SyncBatchNorm)
    for _ in range(3):
        x = 3 + torch.randn(4, 5, 6, 7, dtype=torch.float64)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [norm(each) for norm, each in zip((theirs, ours), inputs, strict=True)]
        torch.testing.assert_close(outputs[1], outputs[0])
        for output in outputs:
            output.pow(3).sum().backward()
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_other_norms_stay_as_they_are() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.BatchNorm1d(3), nn.BatchNorm2d(3, affine=False), nn.LayerNorm(3)
    )
    before = dict(model.state_dict())
    synchronise(model)
    assert [type(module) is SyncBatchNorm for module in model] == [True, False, False, False]
    assert model.state_dict().keys() == before.keys()
