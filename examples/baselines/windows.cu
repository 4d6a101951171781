// A convolution's patches laid in rows, and the way back, without padded copies.
//
//     cut       patches[b, r, s, i, j, c] = x[b, stride r + i - top, stride s + j - left, c]
//               (0 outside the image)
//     uncut     dx[b, h, w, c] = sum of all dpatches that were copied from there, in the order of
//               (i, j): a thread adds up its own pixel's, so there is no atomic addition
//
// Bytes moved = bytes at the least: cut reads x (again for each window, from the cache) and writes
// the patches, uncut reads these and writes dx. A thread has W channels of one pixel.

template <typename T, int W>
__global__ void cut(
    const T* x, int H, int width, int C, int rows, int columns, int kernel, int stride,
    int top, int left, Index packs, T* patches
) {
    Index n = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n >= packs) return;
    int c = n % (C / W) * W;
    Index rest = n / (C / W);
    int j = rest % kernel;
    rest /= kernel;
    int i = rest % kernel;
    rest /= kernel;
    int s = rest % columns;
    rest /= columns;
    int r = rest % rows;
    Index b = rest / rows;
    int h = stride * r + i - top, w = stride * s + j - left;
    Pack<T, W> value = {};
    if (h >= 0 && h < H && w >= 0 && w < width) value = load<W>(x + ((b * H + h) * width + w) * C + c);
    store(patches + n * W, value);
}

template <typename T, int W>
__global__ void uncut(
    const T* dpatches, int H, int width, int C, int rows, int columns, int kernel, int stride,
    int top, int left, Index packs, T* dx
) {
    Index n = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n >= packs) return;
    int c = n % (C / W) * W;
    Index rest = n / (C / W);
    int w = rest % width;
    rest /= width;
    int h = rest % H;
    Index b = rest / H;
    Pack<T, W> sum = {};
    for (int i = 0; i < kernel; ++i) {
        int r = h + top - i;
        if (r < 0 || r % stride || r / stride >= rows) continue;
        for (int j = 0; j < kernel; ++j) {
            int s = w + left - j;
            if (s < 0 || s % stride || s / stride >= columns) continue;
            Index window = (b * rows + r / stride) * columns + s / stride;
            Pack<T, W> part = load<W>(dpatches + ((window * kernel + i) * kernel + j) * C + c);
            for (int k = 0; k < W; ++k) sum.value[k] += part.value[k];
        }
    }
    store(dx + n * W, sum);
}
