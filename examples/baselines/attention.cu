// Attention for one head of one image in a block: scores, softmax and the mean of the values
// without a trip to memory between them. q, k, v lie side by side in qkv (S, B, 3, heads, d).
//
//     P = softmax(scale Q K^T),  Y = P V                                          (S, d) each
//     dP = dY V^T,  dV = P^T dY,  dZ = P (dP - rows' sums of dP P) scale,
//     dQ = dZ K,  dK = dZ^T Q
//
// Q, K, V and P are in shared memory. Backward makes P again from the scores and the logarithm of
// each row's sum, so P, quadratic in the tokens, is never written. Bytes moved: forward reads q, k
// and v once and writes y; backward reads dy, v and twice q and k, and writes dq, dk and dv.
//
// S and d are known when this is compiled: a model has few sizes, and every address is then a sum of
// two numbers. 256 threads stand in 16 x 16; of a product each takes every 16th row and column, so
// that per step it reads RI + RJ numbers for RI RJ multiplications. Rows of shared memory have an odd
// length: 16 neighbours in a column lie in 16 banks.

const int SIDE = 16, THREADS = SIDE * SIDE;

// put(i, j, sum over k < K of a[i AI + k AK] b[k BK + j BJ]) for i < I and j < J.
template <int I, int J, int K, int AI, int AK, int BK, int BJ, typename T, typename Put>
__device__ void product(const T* a, const T* b, Put put) {
    const int RI = (I + SIDE - 1) / SIDE, RJ = (J + SIDE - 1) / SIDE;
    int first_i = threadIdx.x / SIDE, first_j = threadIdx.x % SIDE;
    const T *row[RI], *column[RJ];
    T sum[RI][RJ] = {};
    #pragma unroll
    for (int r = 0; r < RI; ++r) row[r] = a + min(first_i + SIDE * r, I - 1) * AI;
    #pragma unroll
    for (int c = 0; c < RJ; ++c) column[c] = b + min(first_j + SIDE * c, J - 1) * BJ;
    #pragma unroll 8
    for (int k = 0; k < K; ++k) {
        T left[RI], right[RJ];
        #pragma unroll
        for (int r = 0; r < RI; ++r) left[r] = row[r][k * AK];
        #pragma unroll
        for (int c = 0; c < RJ; ++c) right[c] = column[c][k * BK];
        #pragma unroll
        for (int r = 0; r < RI; ++r)
            #pragma unroll
            for (int c = 0; c < RJ; ++c) sum[r][c] += left[r] * right[c];
    }
    #pragma unroll
    for (int r = 0; r < RI; ++r)
        #pragma unroll
        for (int c = 0; c < RJ; ++c) {
            int i = first_i + SIDE * r, j = first_j + SIDE * c;
            if (i < I && j < J) put(i, j, sum[r][c]);
        }
}

// An (S, D) matrix whose rows lie `apart` in memory, into shared memory with rows of LD numbers.
template <int S, int D, int LD, typename T>
__device__ void fetch(T* to, const T* from, Index apart) {
    for (int t = threadIdx.x; t < S * D; t += THREADS)
        to[t / D * LD + t % D] = from[t / D * apart + t % D];
}

template <typename T, int S, int D>
__global__ void __launch_bounds__(THREADS) attention(
    const T* qkv, double scale, T* y, T* log_sums
) {
    extern __shared__ double shared[];
    const int LD = D | 1, LP = S | 1, heads = gridDim.x, C = heads * D;
    const Index head = blockIdx.x, image = blockIdx.y, B = gridDim.y, apart = B * 3 * C;
    T *A = reinterpret_cast<T*>(shared), *other = A + S * LD, *P = other + S * LD;
    qkv += image * 3 * C + head * D;
    fetch<S, D, LD>(A, qkv, apart);
    fetch<S, D, LD>(other, qkv + C, apart);
    __syncthreads();
    product<S, S, D, LD, 1, 1, LD>(A, other, [&](int i, int j, T sum) {
        P[i * LP + j] = sum * T(scale);
    });
    __syncthreads();
    fetch<S, D, LD>(other, qkv + 2 * C, apart);
    int lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < S; i += THREADS / 32) {
        T largest = P[i * LP], sum = 0;
        for (int j = lane; j < S; j += 32) largest = max(largest, P[i * LP + j]);
        for (int distance = 16; distance > 0; distance /= 2)
            largest = max(largest, __shfl_xor_sync(0xffffffff, largest, distance));
        for (int j = lane; j < S; j += 32) sum += exp(P[i * LP + j] - largest);
        T log_sum = largest + log(warp_sum(sum));
        for (int j = lane; j < S; j += 32) P[i * LP + j] = exp(P[i * LP + j] - log_sum);
        if (lane == 0) log_sums[(image * heads + head) * S + i] = log_sum;
    }
    __syncthreads();
    y += image * C + head * D;
    product<S, D, S, LP, 1, LD, 1>(P, other, [&](int i, int j, T sum) {
        y[i * B * C + j] = sum;
    });
}

template <typename T, int S, int D>
__global__ void __launch_bounds__(THREADS) attention_backward(
    const T* dy, const T* qkv, const T* log_sums, double scale, T* dqkv
) {
    extern __shared__ double shared[];
    const int LD = D | 1, LP = S | 1, heads = gridDim.x, C = heads * D;
    const Index head = blockIdx.x, image = blockIdx.y, B = gridDim.y, apart = B * 3 * C;
    T *A = reinterpret_cast<T*>(shared), *other = A + S * LD, *P = other + S * LD, *dZ = P + S * LP;
    qkv += image * 3 * C + head * D;
    dqkv += image * 3 * C + head * D;
    log_sums += (image * heads + head) * S;
    fetch<S, D, LD>(A, qkv, apart);
    fetch<S, D, LD>(other, qkv + C, apart);
    __syncthreads();
    product<S, S, D, LD, 1, 1, LD>(A, other, [&](int i, int j, T sum) {
        P[i * LP + j] = exp(sum * T(scale) - log_sums[i]);
    });
    __syncthreads();
    fetch<S, D, LD>(A, dy + image * C + head * D, B * C);
    fetch<S, D, LD>(other, qkv + 2 * C, apart);
    __syncthreads();
    product<S, S, D, LD, 1, 1, LD>(A, other, [&](int i, int j, T sum) {
        dZ[i * LP + j] = sum;
    });
    product<S, D, S, 1, LP, LD, 1>(P, A, [&](int i, int j, T sum) {
        dqkv[i * apart + 2 * C + j] = sum;
    });
    __syncthreads();
    fetch<S, D, LD>(A, qkv + C, apart);
    fetch<S, D, LD>(other, qkv, apart);
    int lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < S; i += THREADS / 32) {
        T sum = 0;
        for (int j = lane; j < S; j += 32) sum += P[i * LP + j] * dZ[i * LP + j];
        sum = warp_sum(sum);
        for (int j = lane; j < S; j += 32)
            dZ[i * LP + j] = P[i * LP + j] * (dZ[i * LP + j] - sum) * T(scale);
    }
    __syncthreads();
    product<S, D, S, LP, 1, LD, 1>(dZ, A, [&](int i, int j, T sum) {
        dqkv[i * apart + j] = sum;
    });
    product<S, D, S, 1, LP, LD, 1>(dZ, other, [&](int i, int j, T sum) {
        dqkv[i * apart + C + j] = sum;
    });
}
