// Softmax cross-entropy and its gradient, and how many rows are right: a block takes a row z of K scores.
//
// The target is a class (labels) or, if labels is null, a distribution (targets); see loss.py. A
// label outside 0..K-1 makes the loss NaN. Bytes moved: z read three times, twice from the cache,
// dz = scale (p - t) written once; at the least one read and one write. A small matrix: 0.1% of a step.

template <typename T>
__global__ void cross_entropy(
    const T* z, const Index* labels, const T* targets, double smoothing, double scale, int classes,
    T* losses, T* dz
) {
    typedef typename Arithmetic<T>::type A;
    Index row = blockIdx.x;
    z += row * classes;
    A highest = A(z[0]);
    for (int k = threadIdx.x; k < classes; k += blockDim.x) highest = max(highest, A(z[k]));
    for (int distance = 16; distance > 0; distance /= 2)
        highest = max(highest, __shfl_xor_sync(0xffffffff, highest, distance));
    __shared__ A of_warp[32];
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = highest;
    __syncthreads();
    for (int i = 0; i < blockDim.x / 32; ++i) highest = max(highest, of_warp[i]);
    double sum = 0, expected = 0;  // near 1 and 0, a loss is what float has no digits for
    Index label = labels ? labels[row] : 0;
    A hit = A(1 - smoothing), even = A(smoothing / classes);
    for (int k = threadIdx.x; k < classes; k += blockDim.x) {
        A t = labels ? (k == label ? A(1) : A(0)) : A(targets[row * classes + k]);
        A shifted = A(z[k]) - highest;
        sum += double(exp(shifted));
        t = hit * t + even;
        if (t != A(0)) expected += double(t * shifted);  // 0 times -infinity is no loss
    }
    sum = block_sum(sum);
    expected = block_sum(expected);
    bool outside = label < 0 || label >= classes;
    A nan = A(0) / A(0);
    if (threadIdx.x == 0) losses[row] = T(outside ? nan : A(log(sum) - expected));
    if (!dz) return;
    for (int k = threadIdx.x; k < classes; k += blockDim.x) {
        A t = labels ? (k == label ? A(1) : A(0)) : A(targets[row * classes + k]);
        A p = exp(A(z[k]) - highest) / A(sum);
        dz[row * classes + k] = T(outside ? nan : A(scale) * (p - hit * t - even));
    }
}

// Does class k with this score come before another? The larger, of equal ones the first, NaN before all.
template <typename A>
__device__ bool before(A score, int k, A other_score, int other) {
    bool nan = score != score, other_nan = other_score != other_score;
    if (nan != other_nan) return nan;
    return nan || score == other_score ? k < other : score > other_score;
}

// How many rows have their label before all other classes: one block, of which a warp takes a row.
template <typename T>
__global__ void count_right(const T* z, const Index* labels, Index rows, int classes, Index* right) {
    typedef typename Arithmetic<T>::type A;
    int lane = threadIdx.x % 32, count = 0;
    for (Index row = threadIdx.x / 32; row < rows; row += blockDim.x / 32) {
        int best = lane < classes ? lane : 0;
        A highest = A(z[row * classes + best]);
        for (int k = lane + 32; k < classes; k += 32) {
            A score = A(z[row * classes + k]);
            if (before(score, k, highest, best)) highest = score, best = k;
        }
        for (int distance = 16; distance > 0; distance /= 2) {
            A score = __shfl_xor_sync(0xffffffff, highest, distance);
            int k = __shfl_xor_sync(0xffffffff, best, distance);
            if (before(score, k, highest, best)) highest = score, best = k;
        }
        count += lane == 0 && best == labels[row];
    }
    count = block_sum(count);
    if (threadIdx.x == 0) *right = count;
}
