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
// 256 threads stand in 16 x 16; of a product each takes every 16th row and column. So per step it
// reads RI + RJ numbers for RI RJ multiplications. Rows of shared memory have an odd length, so that
// 16 neighbours in a column lie in 16 banks.

const int SIDE = 16;

// put(i, j, sum over k of a[i ai + k ak] b[k bk + j bj]) for i < I and j < J, at most SIDE RI, SIDE RJ.
template <int RI, int RJ, typename T, typename Put>
__device__ void product(
    const T* a, int ai, int ak, const T* b, int bk, int bj, int I, int J, int K, Put put
) {
    int first_i = threadIdx.x / SIDE, first_j = threadIdx.x % SIDE, row[RI], column[RJ];
    T sum[RI][RJ] = {};
    #pragma unroll
    for (int r = 0; r < RI; ++r) row[r] = min(first_i + SIDE * r, I - 1) * ai;
    #pragma unroll
    for (int c = 0; c < RJ; ++c) column[c] = min(first_j + SIDE * c, J - 1) * bj;
    for (int k = 0; k < K; ++k) {
        T left[RI], right[RJ];
        #pragma unroll
        for (int r = 0; r < RI; ++r) left[r] = a[row[r] + k * ak];
        #pragma unroll
        for (int c = 0; c < RJ; ++c) right[c] = b[column[c] + k * bk];
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

// An (S, d) matrix whose rows lie `apart` in memory, into shared memory with rows of d + 1 numbers.
template <typename T>
__device__ void fetch(T* to, const T* from, Index apart, int S, int d) {
    for (int t = threadIdx.x; t < S * d; t += blockDim.x)
        to[t / d * (d + 1) + t % d] = from[t / d * apart + t % d];
}

template <typename T, int RS, int RD>
__global__ void __launch_bounds__(SIDE * SIDE) attention(
    const T* qkv, int S, int d, double scale, T* y, T* log_sums
) {
    extern __shared__ double shared[];
    const int heads = gridDim.x, C = heads * d, ld = d + 1, lp = S | 1;
    const Index head = blockIdx.x, image = blockIdx.y, B = gridDim.y, apart = B * 3 * C;
    T *A = reinterpret_cast<T*>(shared), *other = A + S * ld, *P = other + S * ld;
    qkv += image * 3 * C + head * d;
    fetch(A, qkv, apart, S, d);
    fetch(other, qkv + C, apart, S, d);
    __syncthreads();
    product<RS, RS>(A, ld, 1, other, 1, ld, S, S, d, [&](int i, int j, T sum) {
        P[i * lp + j] = sum * T(scale);
    });
    __syncthreads();
    fetch(other, qkv + 2 * C, apart, S, d);
    int lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < S; i += blockDim.x / 32) {
        T largest = P[i * lp], sum = 0;
        for (int j = lane; j < S; j += 32) largest = max(largest, P[i * lp + j]);
        for (int distance = 16; distance > 0; distance /= 2)
            largest = max(largest, __shfl_xor_sync(0xffffffff, largest, distance));
        for (int j = lane; j < S; j += 32) sum += exp(P[i * lp + j] - largest);
        T log_sum = largest + log(warp_sum(sum));
        for (int j = lane; j < S; j += 32) P[i * lp + j] = exp(P[i * lp + j] - log_sum);
        if (lane == 0) log_sums[(image * heads + head) * S + i] = log_sum;
    }
    __syncthreads();
    y += image * C + head * d;
    product<RS, RD>(P, lp, 1, other, ld, 1, S, d, S, [&](int i, int j, T sum) {
        y[i * B * C + j] = sum;
    });
}

template <typename T, int RS, int RD>
__global__ void __launch_bounds__(SIDE * SIDE) attention_backward(
    const T* dy, const T* qkv, const T* log_sums, int S, int d, double scale, T* dqkv
) {
    extern __shared__ double shared[];
    const int heads = gridDim.x, C = heads * d, ld = d + 1, lp = S | 1;
    const Index head = blockIdx.x, image = blockIdx.y, B = gridDim.y, apart = B * 3 * C;
    T *A = reinterpret_cast<T*>(shared), *other = A + S * ld, *P = other + S * ld, *D = P + S * lp;
    qkv += image * 3 * C + head * d;
    dqkv += image * 3 * C + head * d;
    log_sums += (image * heads + head) * S;
    fetch(A, qkv, apart, S, d);
    fetch(other, qkv + C, apart, S, d);
    __syncthreads();
    product<RS, RS>(A, ld, 1, other, 1, ld, S, S, d, [&](int i, int j, T sum) {
        P[i * lp + j] = exp(sum * T(scale) - log_sums[i]);
    });
    __syncthreads();
    fetch(A, dy + image * C + head * d, B * C, S, d);
    fetch(other, qkv + 2 * C, apart, S, d);
    __syncthreads();
    product<RS, RS>(A, ld, 1, other, 1, ld, S, S, d, [&](int i, int j, T sum) {
        D[i * lp + j] = sum;
    });
    product<RS, RD>(P, 1, lp, A, ld, 1, S, d, S, [&](int i, int j, T sum) {
        dqkv[i * apart + 2 * C + j] = sum;
    });
    __syncthreads();
    fetch(A, qkv + C, apart, S, d);
    fetch(other, qkv, apart, S, d);
    int lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < S; i += blockDim.x / 32) {
        T sum = 0;
        for (int j = lane; j < S; j += 32) sum += P[i * lp + j] * D[i * lp + j];
        sum = warp_sum(sum);
        for (int j = lane; j < S; j += 32)
            D[i * lp + j] = P[i * lp + j] * (D[i * lp + j] - sum) * T(scale);
    }
    __syncthreads();
    product<RS, RD>(D, lp, 1, A, ld, 1, S, d, S, [&](int i, int j, T sum) {
        dqkv[i * apart + j] = sum;
    });
    product<RS, RD>(D, 1, lp, other, ld, 1, S, d, S, [&](int i, int j, T sum) {
        dqkv[i * apart + C + j] = sum;
    });
}
