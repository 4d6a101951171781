// A product too small for cuBLAS, whose kernels take 5 to 15 us for it: a few threads for each element
// of the result, which share the sum and add up theirs, always in the same order.
//
// out (m, n) = [out +] a (m, k) b (k, n) [+ bias (n,)]. Elements of a and b are `down` and `right` apart.
template <typename T>
__global__ void multiply_small(
    const T* a, const T* b, const T* bias, T* out, int m, int k, int n, int threads, int accumulate,
    Index a_down, Index a_right, Index b_down, Index b_right
) {
    int number = blockIdx.x * blockDim.x + threadIdx.x, place = number / threads;
    int row = place / n, column = place % n;
    T sum = 0;
    if (row < m)
        for (int i = number % threads; i < k; i += threads)
            sum += a[row * a_down + i * a_right] * b[i * b_down + column * b_right];
    for (int distance = threads / 2; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(0xffffffff, sum, distance);
    if (row >= m || number % threads) return;
    if (bias) sum += bias[column];
    out[place] = accumulate ? out[place] + sum : sum;
}
