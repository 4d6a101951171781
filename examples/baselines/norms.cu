// GroupNorm over images (B, H W, C), ReLU with it: forward in two passes, backward in two; and the
// standardised weights of convolutions (below).
//
// For GroupNorm a block takes an image. Its threads stand in rows of C / W, one for each pack of W
// channels, and each row of threads takes every (rows)-th pixel: so neighbours read neighbours.
// First come sums for each channel; their squares are of the distance to the channel's first pixel,
// which is about as large as sigma, so that a large mean costs no digits. Sums of a channel, then of
// a group, are added in a fixed order.
//
// Bytes moved: forward reads x twice and writes y; backward reads dy and x twice and writes dx. At
// the least it would be once each, if an image's features stayed in shared memory, which holds
// those of small ones alone.

template <typename A> __device__ A reach(A x, A mean, A inverse) { return (x - mean) * inverse; }

// Before ReLU, rounded alike wherever it is computed: backward asks whether it was above 0.
__device__ inline float scaled(float x_hat, float gamma, float beta) {
    return __fmaf_rn(x_hat, gamma, beta);
}
__device__ inline double scaled(double x_hat, double gamma, double beta) {
    return __fma_rn(x_hat, gamma, beta);
}

// Two sums for each of C channels, from those of each row of threads: into sums[0 ... 2 C).
template <int W, typename A>
__device__ void add_rows(A* sums, A* memory, A (&first)[W], A (&second)[W], int C, int rows) {
    int pack = threadIdx.x % (C / W), row = threadIdx.x / (C / W);
    for (int i = 0; i < W; ++i) {
        memory[row * 2 * C + pack * W + i] = first[i];
        memory[row * 2 * C + C + pack * W + i] = second[i];
    }
    __syncthreads();
    for (int c = threadIdx.x; c < 2 * C; c += blockDim.x) {
        A sum = 0;
        for (int r = 0; r < rows; ++r) sum += memory[r * 2 * C + c];
        sums[c] = sum;
    }
    __syncthreads();
}

template <typename T, int W, bool RELU>
__global__ void group_norm(
    const T* x, const T* gamma, const T* beta, double epsilon, int pixels, int C, int groups,
    T* y, T* mean, T* inverse_sigma
) {
    extern __shared__ double shared[];
    T *sums = reinterpret_cast<T*>(shared), *memory = sums + 2 * C;
    int rows = blockDim.x / (C / W), size = C / groups;
    int c = threadIdx.x % (C / W) * W, row = threadIdx.x / (C / W);
    x += Index(blockIdx.x) * pixels * C;
    y += Index(blockIdx.x) * pixels * C;
    Pack<T, W> first = load<W>(x + c);
    T sum[W] = {}, squares[W] = {};
    #pragma unroll 4
    for (int p = row; p < pixels; p += rows) {
        Pack<T, W> value = load<W>(x + Index(p) * C + c);
        for (int i = 0; i < W; ++i) {
            T distance = value.value[i] - first.value[i];
            sum[i] += distance;
            squares[i] += distance * distance;
        }
    }
    add_rows<W>(sums, memory, sum, squares, C, rows);
    for (int g = threadIdx.x; g < groups; g += blockDim.x) {
        T m = 0, variance = 0;
        for (int k = g * size; k < (g + 1) * size; ++k) m += x[k] + sums[k] / pixels;
        m /= size;
        for (int k = g * size; k < (g + 1) * size; ++k) {
            T own = sums[k] / pixels, apart = x[k] + own - m;
            variance += max(sums[C + k] / pixels - own * own, T(0)) + apart * apart;
        }
        memory[g] = m;
        memory[groups + g] = T(1) / sqrt(variance / size + T(epsilon));
        mean[Index(blockIdx.x) * groups + g] = memory[g];
        inverse_sigma[Index(blockIdx.x) * groups + g] = memory[groups + g];
    }
    __syncthreads();
    T m[W], inverse[W];
    for (int i = 0; i < W; ++i) {
        m[i] = memory[(c + i) / size];
        inverse[i] = memory[groups + (c + i) / size];
    }
    Pack<T, W> scale = load<W>(gamma + c), shift = load<W>(beta + c);
    #pragma unroll 4
    for (int p = row; p < pixels; p += rows) {
        Pack<T, W> value = load<W>(x + Index(p) * C + c);
        for (int i = 0; i < W; ++i) {
            T out = scaled(reach(value.value[i], m[i], inverse[i]), scale.value[i], shift.value[i]);
            // NaN stays NaN, as NumPy's maximum has it.
            value.value[i] = RELU && out < T(0) ? T(0) : out;
        }
        store(y + Index(p) * C + c, value);
    }
}

// partial: (B, 2, C), each image's part of dgamma and dbeta.
template <typename T, int W, bool RELU>
__global__ void group_norm_backward(
    const T* dy, const T* x, const T* mean, const T* inverse_sigma, const T* gamma, const T* beta,
    int pixels, int C, int groups, T* dx, T* partial
) {
    extern __shared__ double shared[];
    T *sums = reinterpret_cast<T*>(shared), *memory = sums + 2 * C;
    int rows = blockDim.x / (C / W), size = C / groups;
    int c = threadIdx.x % (C / W) * W, row = threadIdx.x / (C / W);
    Index start = Index(blockIdx.x) * pixels * C;
    T m[W], inverse[W], of_dy[W] = {}, of_dy_x_hat[W] = {};
    for (int i = 0; i < W; ++i) {
        m[i] = mean[Index(blockIdx.x) * groups + (c + i) / size];
        inverse[i] = inverse_sigma[Index(blockIdx.x) * groups + (c + i) / size];
    }
    Pack<T, W> scale = load<W>(gamma + c), shift = load<W>(beta + c);
    #pragma unroll 4
    for (int p = row; p < pixels; p += rows) {
        Pack<T, W> value = load<W>(x + start + Index(p) * C + c);
        Pack<T, W> slope = load<W>(dy + start + Index(p) * C + c);
        for (int i = 0; i < W; ++i) {
            T x_hat = reach(value.value[i], m[i], inverse[i]), d = slope.value[i];
            if (RELU) d *= T(scaled(x_hat, scale.value[i], shift.value[i]) > T(0));
            of_dy_x_hat[i] += d * x_hat;
            of_dy[i] += d;
        }
    }
    add_rows<W>(sums, memory, of_dy_x_hat, of_dy, C, rows);
    for (int k = threadIdx.x; k < 2 * C; k += blockDim.x)
        partial[Index(blockIdx.x) * 2 * C + k] = sums[k];
    for (int g = threadIdx.x; g < groups; g += blockDim.x) {
        T along = 0, whole = 0;
        for (int k = g * size; k < (g + 1) * size; ++k) {
            along += gamma[k] * sums[k];
            whole += gamma[k] * sums[C + k];
        }
        memory[g] = along / (T(pixels) * size);
        memory[groups + g] = whole / (T(pixels) * size);
    }
    __syncthreads();
    T along[W], whole[W];
    for (int i = 0; i < W; ++i) {
        along[i] = memory[(c + i) / size];
        whole[i] = memory[groups + (c + i) / size];
    }
    #pragma unroll 4
    for (int p = row; p < pixels; p += rows) {
        Pack<T, W> value = load<W>(x + start + Index(p) * C + c);
        Pack<T, W> slope = load<W>(dy + start + Index(p) * C + c);
        for (int i = 0; i < W; ++i) {
            T x_hat = reach(value.value[i], m[i], inverse[i]), d = slope.value[i];
            if (RELU) d *= T(scaled(x_hat, scale.value[i], shift.value[i]) > T(0));
            d = scale.value[i] * d - whole[i] - x_hat * along[i];
            value.value[i] = d * inverse[i];
        }
        store(dx + start + Index(p) * C + c, value);
    }
}

// ---- weights (in, out), each column to mean 0 and variance 1 -------------------------------------
//
// A block of 32 x 32 threads takes 32 columns; each row of threads every 32nd of their numbers.

// The sums over rows of threads, of each column, known to all of them.
template <typename T> __device__ T column_sum(T value) {
    __shared__ T tile[32][33];
    __syncthreads();  // it may still be read from an earlier call
    tile[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    T sum = warp_sum(tile[threadIdx.x][threadIdx.y]);  // of column threadIdx.y
    __syncthreads();
    if (threadIdx.x == 0) tile[0][threadIdx.y] = sum;
    __syncthreads();
    return tile[0][threadIdx.x];
}

template <typename T>
__global__ void standardize(
    const T* weight, int length, int columns, double epsilon, T* y, T* inverse_sigma
) {
    int c = blockIdx.x * 32 + threadIdx.x;
    bool inside = c < columns;
    T sum = 0, squares = 0;
    if (inside)
        for (int i = threadIdx.y; i < length; i += 32) sum += weight[i * columns + c];
    T mean = column_sum(sum) / length;
    if (inside)
        for (int i = threadIdx.y; i < length; i += 32) {
            T apart = weight[i * columns + c] - mean;
            squares += apart * apart;
        }
    T inverse = T(1) / sqrt(column_sum(squares) / length + T(epsilon));
    if (!inside) return;
    for (int i = threadIdx.y; i < length; i += 32)
        y[i * columns + c] = (weight[i * columns + c] - mean) * inverse;
    if (threadIdx.y == 0) inverse_sigma[c] = inverse;
}

template <typename T>
__global__ void standardize_backward(
    const T* dy, const T* y, const T* inverse_sigma, int length, int columns, T* dweight
) {
    int c = blockIdx.x * 32 + threadIdx.x;
    bool inside = c < columns;
    T sum = 0, along = 0;
    if (inside)
        for (int i = threadIdx.y; i < length; i += 32) {
            sum += dy[i * columns + c];
            along += dy[i * columns + c] * y[i * columns + c];
        }
    sum = column_sum(sum) / length;
    along = column_sum(along) / length;
    if (!inside) return;
    for (int i = threadIdx.y; i < length; i += 32) {
        T d = dy[i * columns + c] - sum - y[i * columns + c] * along;
        dweight[i * columns + c] = d * inverse_sigma[c];
    }
}
