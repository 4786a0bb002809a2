"""How far a result may be from its float64 reference, for each dtype."""
import torch
from torch import Tensor

# The half types are computed in float32 and rounded once: one unit in the
# last place. float32 and float64 add up the roundings of a few operations.
TOLERANCES = {
    torch.float16: dict(rtol=2**-10, atol=2**-24),
    torch.bfloat16: dict(rtol=2**-7, atol=0.0),
    torch.float32: dict(rtol=2e-6, atol=1e-12),
    torch.float64: dict(rtol=1e-12, atol=1e-20),
}

DTYPES = tuple(TOLERANCES)


def assert_close(actual: Tensor, reference: Tensor) -> None:
    """Compare with a float64 reference; NaN never passes."""
    assert reference.dtype == torch.float64
    torch.testing.assert_close(actual.double(), reference,
                               **TOLERANCES[actual.dtype])
