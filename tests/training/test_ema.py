"""The average of weights is timm's."""

import torch
from timm.utils.model_ema import ModelEmaV3

from stmbench.training.ema import Ema


def test_the_average_is_timm_s_and_outlives_loaded_weights() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    ours, theirs = Ema(model, 0.7), ModelEmaV3(model, 0.7)
    for step in range(4):
        model(torch.randn(5, 3)).sum().backward()  # moves the statistics, and counts batches
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        if step == 2:  # as a resumed run does
            for module in (model, ours.module, theirs.module):
                module.load_state_dict({key: value + 1 for key, value in module.state_dict().items()})
        for average in (ours, theirs):
            average.update(model)
    wanted = theirs.module.state_dict()
    assert ours.module.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in ours.module.state_dict().items())
    assert not torch.equal(wanted["0.weight"], model.state_dict()["0.weight"])
