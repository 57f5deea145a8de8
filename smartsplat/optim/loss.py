"""What a fit minimises: the value, and its derivative with respect to the rendered image."""

from __future__ import annotations

import numpy as np

from smartsplat.gaussians import Floats


def squared_error(image: Floats, target: Floats, *, weight: Floats | None) -> tuple[float, Floats]:
    """Return the weighted mean squared error over pixels and bands, and its derivative up to a constant factor.

    Parameters
    ----------
    image, target
        ``(H, W, C)``.
    weight
        ``(H, W)``, 0 = no data; None = all 1. Where it is 0, `target` may hold anything finite.

    Returns
    -------
    ``sum w r^2 / (C sum w)`` with ``r = image - target``, summed in float64 (0 where there is no data at all), and
    ``w r``, laid out as `image` is.

    Examples
    --------
    >>> import numpy as np
    >>> value, slope = squared_error(np.full((2, 2, 1), 3.0), np.ones((2, 2, 1)), weight=None)
    >>> value, slope[0, 0]
    (4.0, array([2.]))
    """
    residual = image - target
    slope = residual if weight is None else residual * weight[:, :, None]
    total = residual.shape[0] * residual.shape[1] if weight is None else float(weight.sum(dtype=np.float64))
    if total == 0:
        return 0.0, slope
    return float((residual * slope).sum(dtype=np.float64)) / (total * residual.shape[2]), slope
