// g = gelu(u + bias), and its backward pass, over a matrix u (rows, columns).
//
// The bias, which may be absent, has one element for each column (channel mixing: gelu_columns) or
// for each row (token mixing: gelu_rows). Backward works in place: dg becomes du = dg gelu'(u +
// bias), and where g was not kept, u becomes g, which the next product needs. The bias's gradient,
// the sum of du along a column or row, is begun on the way: each block writes the sum of its part
// to `partial`, and reduce.cu adds those up, in a fixed order.
//
// Bytes moved = bytes at the least: forward one read and one write of the matrix; backward two
// reads and one write, or two and two where g is computed again. Measured on an
// H100 (B/16, 256 images, bfloat16; a copy moves 2.92 TB/s): gelu_columns 0.93 of a copy's rate,
// its backward 0.96, gelu_rows 0.99, its backward 0.99.

// Phi, the normal distribution function, or the tanh form of it: (1 + tanh v) / 2 = 1 / (1 +
// e^-2v), which has no cancellation in the tails. x_slope = x Phi'(x). See functional.py.
// FAST: the hardware's exponential, wrong by 2e-6 at most, for what is rounded to two bytes.
template <bool TANH, bool FAST, typename A>
__device__ void phi_of(A x, A& phi, A& x_slope) {
    if (TANH) {
        const A k = A(0.7978845608028654), a = A(0.044715);
        A square = x * x;
        square = square < A(100) ? square : A(100);  // Phi is 0 or 1 there; no infinities below
        A v = x * k * (A(1) + a * square);
        if constexpr (FAST)
            phi = __fdividef(1.0f, 1.0f + __expf(-2.0f * v));
        else
            phi = A(1) / (A(1) + exp(A(-2) * v));
        x_slope = x * A(2) * phi * (A(1) - phi) * k * (A(1) + A(3) * a * square);
    } else {
        const A k = A(0.3989422804014327);
        if constexpr (sizeof(A) == 4)
            phi = normcdff(x);
        else
            phi = normcdf(x);
        if constexpr (FAST)
            x_slope = x * k * __expf(-0.5f * x * x);
        else
            x_slope = x * k * exp(A(-0.5) * x * x);
    }
}

template <bool TANH, typename T, int W, typename A>
__device__ Pack<T, W> forward_pack(const Pack<T, W>& u, const A (&bias)[W]) {
    Pack<T, W> g;
    for (int i = 0; i < W; ++i) {
        A x = A(u.value[i]) + bias[i], phi, x_slope;
        phi_of<TANH, sizeof(T) == 2>(x, phi, x_slope);
        g.value[i] = T(x * phi);
    }
    return g;
}

// dg becomes du, u becomes g, and du is added to `sums`.
template <bool TANH, typename T, int W, typename A>
__device__ void backward_pack(
    Pack<T, W>& u, Pack<T, W>& dg, const A (&bias)[W], A (&sums)[W]
) {
    for (int i = 0; i < W; ++i) {
        A x = A(u.value[i]) + bias[i], phi, x_slope;
        phi_of<TANH, sizeof(T) == 2>(x, phi, x_slope);
        A du = A(dg.value[i]) * (phi + x_slope);
        u.value[i] = T(x * phi);
        dg.value[i] = T(du);
        sums[i] += du;
    }
}

const int ROWS_AT_ONCE = 4;   // packs that a thread of gelu_columns loads before it uses the first
const int PACKS_AT_ONCE = 4;  // the same in gelu_rows

// Each thread keeps to W columns, whose biases it reads once, and walks down rows_per_block rows.
// Grid: (`columns / W / threads`, `rows / rows_per_block`), both rounded up.
template <typename T, int W, bool TANH>
__global__ void gelu_columns(
    const T* u, const T* bias, T* g, Index rows, Index columns, int rows_per_block
) {
    typedef typename Arithmetic<T>::type A;
    Index column = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * W;
    if (column >= columns) return;
    A b[W] = {};
    if (bias)
        for (int i = 0; i < W; ++i) b[i] = A(bias[column + i]);
    Index row = Index(blockIdx.y) * rows_per_block;
    Index stop = row + rows_per_block < rows ? row + rows_per_block : rows;
    for (; row < stop; row += ROWS_AT_ONCE) {
        Pack<T, W> pack[ROWS_AT_ONCE];
        #pragma unroll
        for (int r = 0; r < ROWS_AT_ONCE; ++r)
            if (row + r < stop) pack[r] = load<W>(u + (row + r) * columns + column);
        #pragma unroll
        for (int r = 0; r < ROWS_AT_ONCE; ++r)
            if (row + r < stop)
                store(g + (row + r) * columns + column, forward_pack<TANH>(pack[r], b));
    }
}

// partial: (gridDim.y, columns)
template <typename T, int W, bool TANH, bool KEEP_G>
__global__ void gelu_columns_backward(
    T* u, const T* bias, T* dg, typename Arithmetic<T>::type* partial,
    Index rows, Index columns, int rows_per_block
) {
    typedef typename Arithmetic<T>::type A;
    Index column = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * W;
    if (column >= columns) return;
    A b[W] = {}, sums[W] = {};
    if (bias)
        for (int i = 0; i < W; ++i) b[i] = A(bias[column + i]);
    Index row = Index(blockIdx.y) * rows_per_block;
    Index stop = row + rows_per_block < rows ? row + rows_per_block : rows;
    for (; row < stop; row += ROWS_AT_ONCE) {
        Pack<T, W> us[ROWS_AT_ONCE], dgs[ROWS_AT_ONCE];
        #pragma unroll
        for (int r = 0; r < ROWS_AT_ONCE; ++r)
            if (row + r < stop) {
                us[r] = load<W>(u + (row + r) * columns + column);
                dgs[r] = load<W>(dg + (row + r) * columns + column);
            }
        #pragma unroll
        for (int r = 0; r < ROWS_AT_ONCE; ++r)
            if (row + r < stop) {
                backward_pack<TANH>(us[r], dgs[r], b, sums);
                store(dg + (row + r) * columns + column, dgs[r]);
                if (KEEP_G) store(u + (row + r) * columns + column, us[r]);
            }
    }
    for (int i = 0; i < W; ++i) partial[blockIdx.y * columns + column + i] = sums[i];
}

// Each block works on PACKS_AT_ONCE packs a thread, within one row after another.
// Grid: (`columns / W / threads / PACKS_AT_ONCE` rounded up, rows but at most 65535)
template <typename T, int W, bool TANH>
__global__ void gelu_rows(const T* u, const T* bias, T* g, Index rows, Index columns) {
    typedef typename Arithmetic<T>::type A;
    Index first = (Index(blockIdx.x) * blockDim.x * PACKS_AT_ONCE + threadIdx.x) * W;
    for (Index row = blockIdx.y; row < rows; row += gridDim.y) {
        A b[W];
        for (int i = 0; i < W; ++i) b[i] = bias ? A(bias[row]) : A(0);
        Pack<T, W> pack[PACKS_AT_ONCE];
        #pragma unroll
        for (int p = 0; p < PACKS_AT_ONCE; ++p) {
            Index column = first + Index(p) * blockDim.x * W;
            if (column < columns) pack[p] = load<W>(u + row * columns + column);
        }
        #pragma unroll
        for (int p = 0; p < PACKS_AT_ONCE; ++p) {
            Index column = first + Index(p) * blockDim.x * W;
            if (column < columns)
                store(g + row * columns + column, forward_pack<TANH>(pack[p], b));
        }
    }
}

// partial: (rows, gridDim.x)
template <typename T, int W, bool TANH, bool KEEP_G>
__global__ void gelu_rows_backward(
    T* u, const T* bias, T* dg, typename Arithmetic<T>::type* partial, Index rows, Index columns
) {
    typedef typename Arithmetic<T>::type A;
    Index first = (Index(blockIdx.x) * blockDim.x * PACKS_AT_ONCE + threadIdx.x) * W;
    for (Index row = blockIdx.y; row < rows; row += gridDim.y) {
        A b[W], sums[W] = {};
        for (int i = 0; i < W; ++i) b[i] = bias ? A(bias[row]) : A(0);
        Pack<T, W> us[PACKS_AT_ONCE], dgs[PACKS_AT_ONCE];
        #pragma unroll
        for (int p = 0; p < PACKS_AT_ONCE; ++p) {
            Index column = first + Index(p) * blockDim.x * W;
            if (column < columns) {
                us[p] = load<W>(u + row * columns + column);
                dgs[p] = load<W>(dg + row * columns + column);
            }
        }
        #pragma unroll
        for (int p = 0; p < PACKS_AT_ONCE; ++p) {
            Index column = first + Index(p) * blockDim.x * W;
            if (column < columns) {
                backward_pack<TANH>(us[p], dgs[p], b, sums);
                store(dg + row * columns + column, dgs[p]);
                if (KEEP_G) store(u + row * columns + column, us[p]);
            }
        }
        A sum = 0;
        for (int i = 0; i < W; ++i) sum += sums[i];
        sum = block_sum(sum);
        if (threadIdx.x == 0) partial[row * gridDim.x + blockIdx.x] = sum;
    }
}
