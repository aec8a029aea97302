"""What makes logits of the last level's features."""

from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.nn import functional as F

from stmbench.nn.init import init_weights
from stmbench.record import Macs

HEAD_RATIO = 1.5


class BaseHead(nn.Module):
    """A pooling and a linear classifier of `hidden` numbers, which `reset` makes anew."""

    def __init__(self, hidden: int, drop_rate: float) -> None:
        super().__init__()
        self.hidden, self.drop_rate = hidden, drop_rate

    def reset(self, num_classes: int, global_pool: str) -> None:
        """A new classifier; none at all for 0 classes. "" leaves the features unpooled."""
        if num_classes and not global_pool:
            raise ValueError("Nothing to classify without pooling: set num_classes=0 or global_pool='avg'.")
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        inputs = self.hidden * self.global_pool.feat_mult()
        self.fc = nn.Linear(inputs, num_classes) if num_classes else nn.Identity()
        init_weights(self.fc)


class Head(BaseHead):
    """Convolution, BatchNorm, GELU, pooling and a linear classifier, on features in NCHW."""

    def __init__(self, dim: int, num_classes: int, global_pool: str, drop_rate: float) -> None:
        super().__init__(int(dim * HEAD_RATIO), drop_rate)
        self.conv = nn.Conv2d(dim, self.hidden, 1, bias=False)
        self.norm = nn.BatchNorm2d(self.hidden)
        self.reset(num_classes, global_pool)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(F.gelu(self.norm(self.conv(x))))
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image with features of `height` x `width` positions."""
        classifier = self.fc.weight.numel() if isinstance(self.fc, nn.Linear) else 0
        return Macs(height * width * self.conv.weight.numel() + classifier)
