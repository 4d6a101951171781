// s = x + (y + bias) keep and h = LayerNorm(s) in one pass, and the backward pass of both in another.
//
// A warp of 32 threads takes a row of C elements and keeps it in registers (backward in shared memory):
// K packs of W elements a thread, 32 W K >= C. C is known when this is compiled, so that nothing is
// asked that need not be (FULL: every thread has K whole packs), and loads follow one another. The bias,
// which may be absent, has C elements (bias_rows = 0), or one for every bias_rows rows (token mixing's:
// one for each token, that is for B rows). `keep`, which may be absent too, has a factor for each of B
// examples; backward then has a dy beside dx. Behind h there may be room for some rows of ones
// (spare_row.py). h is computed from s as it is stored, so that backward, which reads s again, sees the
// same x_hat.
//
// Bytes moved = bytes at the least: forward reads x and y and writes s and h, backward reads dh, ds
// and s and writes dx (and dy): four times the matrix each, and a thousandth of it for sums.
// Measured with Mixer-B/16, 256 images, bfloat16: on an H100 forward 0.98 of a copy's rate, 2.92 TB/s;
// on an H200 forward 3.80 TB/s, backward 3.1 to 3.3.

template <typename T, int W, int C, bool KEEP>
__global__ void __launch_bounds__(128) add_layer_norm(
    const T* x, const T* y, const T* bias, Index bias_rows, const T* keep, Index examples,
    const T* gamma, const T* beta, double epsilon, Index rows, Index ones,
    T* s, T* h, typename Arithmetic<T>::type* mean, typename Arithmetic<T>::type* inverse_sigma
) {
    typedef typename Arithmetic<T>::type A;
    const int K = (C + 32 * W - 1) / (32 * W);
    const bool FULL = C == 32 * W * K;
    Index row = Index(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) {
        if (row < rows + ones)
            for (int c = lane; c < C; c += 32) h[row * C + c] = T(1);
        return;
    }
    Pack<T, W> kept[K], added[K];
    #pragma unroll
    for (int k = 0; k < K; ++k) {
        int c = (k * 32 + lane) * W;
        if (FULL || c < C) {
            kept[k] = load<W>(x + row * C + c);
            if (y) added[k] = load<W>(y + row * C + c);
        }
    }
    A row_bias = bias && bias_rows ? A(bias[row / bias_rows]) : A(0);
    A factor = KEEP ? A(keep[row % examples]) : A(1);
    A sum = 0;
    #pragma unroll
    for (int k = 0; k < K; ++k) {
        int c = (k * 32 + lane) * W;
        if (!FULL && c >= C) continue;
        if (y || bias) {
            Pack<T, W> b;
            if (bias && !bias_rows) b = load<W>(bias + c);
            for (int i = 0; i < W; ++i) {
                A own = A(kept[k].value[i]), first = y ? A(added[k].value[i]) : A(0);
                A second = !bias ? A(0) : bias_rows ? row_bias : A(b.value[i]);
                kept[k].value[i] = T(KEEP ? own + factor * (first + second) : own + first + second);
            }
            store(s + row * C + c, kept[k]);
        }
        for (int i = 0; i < W; ++i) sum += A(kept[k].value[i]);
    }
    A m = warp_sum(sum) / C, rest = 0, squares = 0;
    #pragma unroll
    for (int k = 0; k < K; ++k)
        if (FULL || (k * 32 + lane) * W < C)
            for (int i = 0; i < W; ++i) rest += A(kept[k].value[i]) - m;
    m += warp_sum(rest) / C;  // what rounding has done to the mean, much beside a small sigma
    #pragma unroll
    for (int k = 0; k < K; ++k)
        if (FULL || (k * 32 + lane) * W < C)
            for (int i = 0; i < W; ++i) {
                A centred = A(kept[k].value[i]) - m;
                squares += centred * centred;
            }
    A inverse = A(1) / sqrt(warp_sum(squares) / C + A(epsilon));
    #pragma unroll
    for (int k = 0; k < K; ++k) {
        int c = (k * 32 + lane) * W;
        if (!FULL && c >= C) continue;
        Pack<T, W> scale = load<W>(gamma + c), shift = load<W>(beta + c), out;
        for (int i = 0; i < W; ++i)
            out.value[i] = T((A(kept[k].value[i]) - m) * inverse * A(scale.value[i])
                             + A(shift.value[i]));
        store(h + row * C + c, out);
    }
    if (lane == 0) {
        mean[row] = m;
        inverse_sigma[row] = inverse;
    }
}

// (s - mean) / sigma; with one instruction less, where s has so few digits that the error of this does
// not matter: mean / sigma times 6e-8.
template <typename T, typename A>
__device__ A x_hat_of(A s, A mean, A inverse) {
    return sizeof(T) == 2 ? s * inverse - mean * inverse : (s - mean) * inverse;
}

// From global to shared memory, while the thread goes on (from compute capability 8.0 on).
template <typename T, int W>
__device__ void copy_ahead(Pack<T, W>& to, const T* from) {
#if __CUDA_ARCH__ >= 800
    if constexpr (sizeof(to) >= 4)
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"
            :: "r"((unsigned) __cvta_generic_to_shared(&to)), "l"(from), "n"(sizeof(to)) : "memory");
    else
#endif
        to = load<W>(from);
}
__device__ inline void end_of_copies() {  // that one will wait for together
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
__device__ inline void wait_for_copies_but_the_last() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group 1;" ::: "memory");
#endif
}

// dx as derived in layer_norm.py. dh may have fewer rows than the rest, dh_rows, which are then
// repeated: below the mean over the tokens all tokens have the same gradient. Each warp takes every
// (warps of the grid)-th row and sums what its columns give to dgamma, dbeta and, if COLUMN_BIAS,
// dbias; then the block's warps add up, one after the other. partial: (gridDim.x, 3 or 2, C).
// row_sums, if not null: the sum of each row of dy, for a bias along the rows.
//
// While a warp computes a row, its next one is on its way to shared memory: dh, s and ds, each thread's
// packs at places of its own. Shared memory: (3 or 2, C) sums, then twice 3 K packs for each thread.
template <typename T, int W, int C, bool COLUMN_BIAS>
__global__ void __launch_bounds__(128) add_layer_norm_backward(
    const T* dh, Index dh_rows, const T* ds, const T* s, const typename Arithmetic<T>::type* mean,
    const typename Arithmetic<T>::type* inverse_sigma, const T* gamma, const T* keep,
    Index examples, Index rows,
    T* dx, T* dy, typename Arithmetic<T>::type* partial, typename Arithmetic<T>::type* row_sums
) {
    typedef typename Arithmetic<T>::type A;
    const int K = (C + 32 * W - 1) / (32 * W);
    const bool FULL = C == 32 * W * K;
    extern __shared__ double memory[];
    A* total = reinterpret_cast<A*>(memory);
    const int sums = COLUMN_BIAS ? 3 : 2, warps = 4;
    typedef Pack<T, W> Packs[3][K][32 * warps];
    Packs* packs = reinterpret_cast<Packs*>(total + sums * C);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    A dgamma[K][W] = {}, dbeta[K][W] = {}, dbias[COLUMN_BIAS ? K : 1][W] = {};
    Index step = Index(gridDim.x) * warps, row = Index(blockIdx.x) * warps + warp;
    auto ask = [&](int place, Index row) {
        Index dh_row = dh_rows == rows ? row : row % dh_rows;
        #pragma unroll
        for (int k = 0; k < K; ++k) {
            int c = (k * 32 + lane) * W;
            if (row < rows && (FULL || c < C)) {
                copy_ahead(packs[place][0][k][threadIdx.x], dh + dh_row * C + c);
                copy_ahead(packs[place][1][k][threadIdx.x], s + row * C + c);
                if (ds) copy_ahead(packs[place][2][k][threadIdx.x], ds + row * C + c);
            }
        }
        end_of_copies();
    };
    ask(0, row);
    for (int place = 0; row < rows; row += step, place ^= 1) {
        ask(place ^ 1, row + step);
        wait_for_copies_but_the_last();
        A inverse = inverse_sigma[row], m = mean[row], sum = 0, product = 0;
        A factor = keep ? A(keep[row % examples]) : A(1);
        #pragma unroll
        for (int k = 0; k < K; ++k) {
            int c = (k * 32 + lane) * W;
            if (!FULL && c >= C) continue;
            Pack<T, W> scale = load<W>(gamma + c);
            Pack<T, W> dhs = packs[place][0][k][threadIdx.x], ss = packs[place][1][k][threadIdx.x];
            for (int i = 0; i < W; ++i) {
                A d = A(dhs.value[i]), x_hat = x_hat_of<T>(A(ss.value[i]), m, inverse);
                dgamma[k][i] += d * x_hat;
                dbeta[k][i] += d;
                d *= A(scale.value[i]);
                sum += d;
                product += d * x_hat;
            }
        }
        sum = -warp_sum(sum) / C * inverse;
        product = -warp_sum(product) / C * inverse;
        A row_sum = 0;
        #pragma unroll
        for (int k = 0; k < K; ++k) {
            int c = (k * 32 + lane) * W;
            if (!FULL && c >= C) continue;
            Pack<T, W> scale = load<W>(gamma + c), out, dss = {};
            Pack<T, W> dhs = packs[place][0][k][threadIdx.x], ss = packs[place][1][k][threadIdx.x];
            if (ds) dss = packs[place][2][k][threadIdx.x];
            for (int i = 0; i < W; ++i) {
                A x_hat = x_hat_of<T>(A(ss.value[i]), m, inverse);
                A d = A(dhs.value[i]) * A(scale.value[i]);
                d = d * inverse + (x_hat * product + (A(dss.value[i]) + sum));
                out.value[i] = T(d);
                d *= factor;
                if (COLUMN_BIAS) dbias[k][i] += d;
                else row_sum += d;
            }
            store(dx + row * C + c, out);
            if (!dy) continue;
            for (int i = 0; i < W; ++i) out.value[i] = T(A(out.value[i]) * factor);
            store(dy + row * C + c, out);
        }
        if (!COLUMN_BIAS && row_sums) {
            row_sum = warp_sum(row_sum);
            if (lane == 0) row_sums[row] = row_sum;
        }
    }
    for (int turn = 0; turn < warps; ++turn) {
        if (turn == warp)
            #pragma unroll
            for (int k = 0; k < K; ++k) {
                int c = (k * 32 + lane) * W;
                if (!FULL && c >= C) continue;
                for (int i = 0; i < W; ++i) {
                    A* to = total + c + i;
                    to[0] = dgamma[k][i] + (turn ? to[0] : A(0));
                    to[C] = dbeta[k][i] + (turn ? to[C] : A(0));
                    if (COLUMN_BIAS)
                        to[2 * C] = dbias[k][i] + (turn ? to[2 * C] : A(0));
                }
            }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < sums * C; i += blockDim.x)
        partial[Index(blockIdx.x) * sums * C + i] = total[i];
}

// ---- rows of any length: read again instead of kept, one element a thread ------------------------

template <typename T>
__global__ void add_layer_norm_any(
    const T* x, const T* y, const T* bias, Index bias_rows, const T* keep, Index examples,
    const T* gamma, const T* beta, double epsilon, Index rows, Index ones, int channels,
    T* s, T* h, typename Arithmetic<T>::type* mean, typename Arithmetic<T>::type* inverse_sigma
) {
    typedef typename Arithmetic<T>::type A;
    Index row = Index(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    Index start = row * channels;
    if (row >= rows) {
        if (row < rows + ones)
            for (int c = lane; c < channels; c += 32) h[start + c] = T(1);
        return;
    }
    A sum = 0, rest = 0, squares = 0, factor = keep ? A(keep[row % examples]) : A(1);
    for (int c = lane; c < channels; c += 32) {
        A own = A(x[start + c]), first = y ? A(y[start + c]) : A(0);
        A second = bias ? A(bias[bias_rows ? row / bias_rows : Index(c)]) : A(0);
        A value = keep ? own + factor * (first + second) : own + first + second;
        if (y || bias) s[start + c] = T(value);
        sum += A(T(value));
    }
    const T* stored = y || bias ? s : x;  // each thread reads what it wrote itself
    A m = warp_sum(sum) / channels;
    for (int c = lane; c < channels; c += 32) rest += A(stored[start + c]) - m;
    m += warp_sum(rest) / channels;
    for (int c = lane; c < channels; c += 32) {
        A centred = A(stored[start + c]) - m;
        squares += centred * centred;
    }
    A inverse = A(1) / sqrt(warp_sum(squares) / channels + A(epsilon));
    for (int c = lane; c < channels; c += 32)
        h[start + c] = T((A(stored[start + c]) - m) * inverse * A(gamma[c]) + A(beta[c]));
    if (lane == 0) {
        mean[row] = m;
        inverse_sigma[row] = inverse;
    }
}

template <typename T>
__global__ void add_layer_norm_backward_any(
    const T* dh, Index dh_rows, const T* ds, const T* s, const typename Arithmetic<T>::type* mean,
    const typename Arithmetic<T>::type* inverse_sigma, const T* gamma, const T* keep,
    Index examples, Index rows, int channels,
    T* dx, T* dy, typename Arithmetic<T>::type* row_sums
) {
    typedef typename Arithmetic<T>::type A;
    Index row = Index(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    int lane = threadIdx.x % 32;
    Index start = row * channels;
    A m = mean[row], inverse = inverse_sigma[row], sum = 0, product = 0, row_sum = 0;
    A factor = keep ? A(keep[row % examples]) : A(1);
    dh += (row % dh_rows) * channels;
    for (int c = lane; c < channels; c += 32) {
        A d = rounded_product(A(dh[c]), A(gamma[c]));
        sum += d;
        product += d * (A(s[start + c]) - m) * inverse;
    }
    sum = warp_sum(sum) / channels;
    product = warp_sum(product) / channels;
    for (int c = lane; c < channels; c += 32) {
        A x_hat = (A(s[start + c]) - m) * inverse;
        A d = rounded_product(A(dh[c]), A(gamma[c])) - sum;
        d = (d - x_hat * product) * inverse;
        if (ds) d += A(ds[start + c]);
        dx[start + c] = T(d);
        row_sum += d * factor;
        if (dy) dy[start + c] = T(A(T(d)) * factor);
    }
    row_sum = warp_sum(row_sum);
    if (row_sums && lane == 0) row_sums[row] = row_sum;
}

// A thread for each column, blockIdx.y for each stretch of rows. partial: (gridDim.y, 3, channels)
template <typename T>
__global__ void add_layer_norm_sums_any(
    const T* dh, Index dh_rows, const T* dy, const T* s,
    const typename Arithmetic<T>::type* mean,
    const typename Arithmetic<T>::type* inverse_sigma, Index rows, int channels,
    int rows_per_block, typename Arithmetic<T>::type* partial
) {
    typedef typename Arithmetic<T>::type A;
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    A dgamma = 0, dbeta = 0, dbias = 0;
    Index row = Index(blockIdx.y) * rows_per_block;
    Index stop = row + rows_per_block < rows ? row + rows_per_block : rows;
    for (; row < stop; ++row) {
        A d = A(dh[(row % dh_rows) * channels + c]);
        dgamma += d * (A(s[row * channels + c]) - mean[row]) * inverse_sigma[row];
        dbeta += d;
        dbias += A(dy[row * channels + c]);
    }
    A* to = partial + Index(blockIdx.y) * 3 * channels + c;
    to[0] = dgamma;
    to[channels] = dbeta;
    to[2 * channels] = dbias;
}
