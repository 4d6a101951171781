// The softmax of rows, and its way back, by the formulas of more_loss.py.
//
// A warp of 32 threads takes a row of `length` numbers and keeps it in registers, K a thread,
// 32 K >= length. Bytes moved = bytes at the least: forward reads z and writes p, backward reads dp
// and p and writes dz. A row of attention's weights is seldom a multiple of four long, so each
// thread loads one number at a time; 32 neighbours make a whole line of memory all the same.

#define LEAST __int_as_float(0xff800000)  // -infinity

template <typename A> __device__ A warp_max(A value) {
    for (int distance = 16; distance > 0; distance /= 2) {
        A other = __shfl_xor_sync(0xffffffff, value, distance);
        // Of a number and NaN NaN is the larger, as in NumPy.
        value = other > value || other != other ? other : value;
    }
    return value;
}

template <typename T, int K>
__global__ void __launch_bounds__(128) softmax(const T* z, Index rows, int length, T* p) {
    typedef typename Arithmetic<T>::type A;
    Index row = Index(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    int lane = threadIdx.x % 32;
    z += row * length;
    p += row * length;
    A kept[K], largest = LEAST, sum = 0;
    #pragma unroll
    for (int k = 0; k < K; ++k) {
        int i = k * 32 + lane;
        kept[k] = i < length ? A(z[i]) : A(LEAST);
        largest = kept[k] > largest || kept[k] != kept[k] ? kept[k] : largest;
    }
    largest = warp_max(largest);
    #pragma unroll
    for (int k = 0; k < K; ++k) {
        kept[k] = k * 32 + lane < length ? exp(kept[k] - largest) : A(0);
        sum += kept[k];
    }
    sum = warp_sum(sum);
    #pragma unroll
    for (int k = 0; k < K; ++k)
        if (k * 32 + lane < length) p[k * 32 + lane] = T(kept[k] / sum);
}

template <typename T, int K>
__global__ void __launch_bounds__(128) softmax_backward(
    const T* dp, const T* p, Index rows, int length, T* dz
) {
    typedef typename Arithmetic<T>::type A;
    Index row = Index(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    int lane = threadIdx.x % 32;
    dp += row * length;
    p += row * length;
    dz += row * length;
    A slope[K], share[K], sum = 0;
    #pragma unroll
    for (int k = 0; k < K; ++k) {
        int i = k * 32 + lane;
        slope[k] = i < length ? A(dp[i]) : A(0);
        share[k] = i < length ? A(p[i]) : A(0);
        sum += slope[k] * share[k];
    }
    sum = warp_sum(sum);
    #pragma unroll
    for (int k = 0; k < K; ++k)
        if (k * 32 + lane < length) dz[k * 32 + lane] = T(share[k] * (slope[k] - sum));
}
