# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton kernels of the group normalisation; :mod:`rarefy.fast.gpu.norm` launches them.

Images are tokens, (B, N, C) contiguous. A program computes some channels of one image: a chunk of tokens, tile by tile,
or one tile of ROWS tokens; CHANNELS divides C. Coefficients per image and channel are stored in consecutive (B, C)
float32 planes.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(image, first, columns, tokens, channels, ROWS: tl.constexpr):
    """Positions of a tile's values, and which of them are inside the image."""
    rows = first + tl.arange(0, ROWS)
    places = (image.to(tl.int64) * tokens + rows[:, None]) * channels + columns[None, :]
    return places, (rows < tokens)[:, None]


@triton.jit
def _gradient_u(values, grad, a, b, SILU: tl.constexpr):
    """Gradient before f, at u = a x + b."""
    gradient = grad
    if SILU:
        u = values * a[None, :] + b[None, :]
        sigmoid = 1 / (1 + tl.exp(-u))
        gradient = grad * sigmoid * (1 + u * (1 - sigmoid))
    return gradient


@triton.jit
def chunk_statistics(
    x, means, squares, tokens, channels, TILES: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Each channel's mean over a chunk, and the sum of squared distances from it, (B, chunks, C).

    Tiles are merged as in Chan, Golub and LeVeque (1983), so that no large sums cancel.
    """
    image, chunk = tl.program_id(0), tl.program_id(1)
    columns = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    mean, square = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    for tile in range(TILES):
        seen = tile * ROWS
        first = chunk * TILES * ROWS + seen
        places, inside = _tile(image, first, columns, tokens, channels, ROWS)
        values = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        count = tl.maximum(tl.minimum(tokens - first, ROWS), 0)
        tile_mean = tl.sum(values, axis=0) / tl.maximum(count, 1)
        distance = tl.where(inside, values - tile_mean[None, :], 0.0)
        delta, total = tile_mean - mean, tl.maximum(seen + count, 1)
        mean += delta * count / total
        square += tl.sum(distance * distance, axis=0) + delta * delta * (seen * (count / total))
    place = (image * tl.num_programs(1) + chunk) * channels + columns
    tl.store(means + place, mean)
    tl.store(squares + place, square)


@triton.jit
def coefficients(
    means, squares, weight, bias, scale, shift, statistics, tokens, channels, chunks, chunk_rows, scale_stride,
    shift_stride, eps, SCALED: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """a, b, mean and 1 / deviation of one group of an image, from all its chunks -> statistics, four planes."""
    image, group, width = tl.program_id(0), tl.program_id(1), channels // tl.num_programs(1)
    chunk, column = tl.arange(0, CHUNKS), tl.arange(0, WIDTH)
    columns, keep = group * width + column, column < width
    inside = (chunk < chunks)[:, None] & keep[None, :]
    places = (image * chunks + chunk[:, None]) * channels + columns[None, :]
    mean_of = tl.load(means + places, mask=inside, other=0.0)
    square_of = tl.load(squares + places, mask=inside, other=0.0)
    count = tl.maximum(tl.minimum(tokens - chunk * chunk_rows, chunk_rows), 0).to(tl.float32)[:, None]
    total = 1.0 * tokens * width
    mean = tl.sum(tl.sum(mean_of * count, axis=1), axis=0) / total
    distance = tl.where(inside, mean_of - mean, 0.0)
    variance = tl.sum(tl.sum(square_of + count * distance * distance, axis=1), axis=0) / total
    rstd = 1 / tl.sqrt(variance + eps)
    a = rstd * tl.load(weight + columns, mask=keep, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=keep, other=0.0).to(tl.float32) - mean * a
    if SCALED:
        factor = 1 + tl.load(scale + image * scale_stride + columns, mask=keep, other=0.0).to(tl.float32)
        a = a * factor
        b = b * factor + tl.load(shift + image * shift_stride + columns, mask=keep, other=0.0).to(tl.float32)
    place, plane = image * channels + columns, tl.num_programs(0) * channels
    tl.store(statistics + place, a, mask=keep)
    tl.store(statistics + plane + place, b, mask=keep)
    tl.store(statistics + 2 * plane + place, tl.zeros((WIDTH,), tl.float32) + mean, mask=keep)
    tl.store(statistics + 3 * plane + place, tl.zeros((WIDTH,), tl.float32) + rstd, mask=keep)


@triton.jit
def apply(x, y, statistics, tokens, channels, SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """y = f(a x + b), where f is SiLU or the identity."""
    image, columns = tl.program_id(0), tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    places, inside = _tile(image, tl.program_id(1) * ROWS, columns, tokens, channels, ROWS)
    place, plane = image * channels + columns, tl.num_programs(0) * channels
    a = tl.load(statistics + place)
    b = tl.load(statistics + plane + place)
    u = tl.load(x + places, mask=inside, other=0.0).to(tl.float32) * a[None, :] + b[None, :]
    if SILU:
        u = u / (1 + tl.exp(-u))
    tl.store(y + places, u.to(y.dtype.element_ty), mask=inside)


@triton.jit
def chunk_gradients(
    x, grad, statistics, sums, tokens, channels,
    SILU: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums over a chunk of du and of du (x - mean) -> sums, (2, B, chunks, C)."""
    image, chunk = tl.program_id(0), tl.program_id(1)
    columns = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    place, plane = image * channels + columns, tl.num_programs(0) * channels
    a = tl.load(statistics + place)
    b = tl.load(statistics + plane + place)
    mean = tl.load(statistics + 2 * plane + place)
    sum_du, sum_du_x = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    for tile in range(TILES):
        places, inside = _tile(image, (chunk * TILES + tile) * ROWS, columns, tokens, channels, ROWS)
        values = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        du = _gradient_u(values, tl.load(grad + places, mask=inside, other=0.0).to(tl.float32), a, b, SILU)
        sum_du += tl.sum(du, axis=0)
        sum_du_x += tl.sum(du * (values - mean[None, :]), axis=0)
    chunks = tl.num_programs(1)
    place = (image * chunks + chunk) * channels + columns
    tl.store(sums + place, sum_du)
    tl.store(sums + plane * chunks + place, sum_du_x)


@triton.jit
def gradient_coefficients(
    sums, statistics, gradients, tokens, channels, chunks, CHUNKS: tl.constexpr, WIDTH: tl.constexpr
):
    """Means of du and du x_hat, and offset and slope of the statistics' share of grad_x -> gradients, four planes."""
    image, group, width = tl.program_id(0), tl.program_id(1), channels // tl.num_programs(1)
    chunk, column = tl.arange(0, CHUNKS), tl.arange(0, WIDTH)
    columns, keep = group * width + column, column < width
    inside = (chunk < chunks)[:, None] & keep[None, :]
    places = (image * chunks + chunk[:, None]) * channels + columns[None, :]
    place, plane = image * channels + columns, tl.num_programs(0) * channels
    a = tl.load(statistics + place, mask=keep, other=0.0)
    mean = tl.load(statistics + 2 * plane + place, mask=keep, other=0.0)
    rstd = tl.load(statistics + 3 * plane + place, mask=keep, other=1.0)
    mean_du = tl.sum(tl.load(sums + places, mask=inside, other=0.0), axis=0) / tokens
    mean_du_xhat = tl.sum(tl.load(sums + plane * chunks + places, mask=inside, other=0.0), axis=0) / tokens * rstd
    gain = a / rstd
    slope = -rstd * rstd * (tl.sum(mean_du_xhat * gain, axis=0) / width)
    offset = -rstd * (tl.sum(mean_du * gain, axis=0) / width) - slope * mean
    tl.store(gradients + place, mean_du, mask=keep)
    tl.store(gradients + plane + place, mean_du_xhat, mask=keep)
    tl.store(gradients + 2 * plane + place, offset, mask=keep)
    tl.store(gradients + 3 * plane + place, slope, mask=keep)


@triton.jit
def gradient_input(
    x, grad, statistics, gradients, grad_x, tokens, channels,
    SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """grad_x = a du + slope x + offset."""
    image, columns = tl.program_id(0), tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    places, inside = _tile(image, tl.program_id(1) * ROWS, columns, tokens, channels, ROWS)
    place, plane = image * channels + columns, tl.num_programs(0) * channels
    a = tl.load(statistics + place)
    b = tl.load(statistics + plane + place)
    offset = tl.load(gradients + 2 * plane + place)
    slope = tl.load(gradients + 3 * plane + place)
    values = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    du = _gradient_u(values, tl.load(grad + places, mask=inside, other=0.0).to(tl.float32), a, b, SILU)
    gradient = du * a[None, :] + values * slope[None, :] + offset[None, :]
    tl.store(grad_x + places, gradient.to(grad_x.dtype.element_ty), mask=inside)
