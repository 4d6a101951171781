// Sums in a fixed order, most of them the second half of what other kernels begin.
//
// Bytes moved = bytes at the least: one read of the matrix. Most matrices are small, a part in a hundred
// of what the first half read; but sum_squares reads the flat gradient, sum_stretches a layer's.

// (rows, parts, columns) -> up to three arrays (columns,), one for each part: LayerNorm's dgamma,
// dbeta and dbias in one launch. Blocks of 32 x 32 threads, one for every 32 columns of a part; those
// whose array is null do nothing.
template <typename A>
__global__ void sum_rows(
    const A* matrix, A* sums0, A* sums1, A* sums2, Index rows, Index columns
) {
    A* sums = blockIdx.y == 0 ? sums0 : blockIdx.y == 1 ? sums1 : sums2;
    if (!sums) return;
    matrix += blockIdx.y * columns;
    Index stride = gridDim.y * columns;
    __shared__ A tile[32][33];
    Index column = Index(blockIdx.x) * 32 + threadIdx.x;
    A sum = 0;
    if (column < columns)
        #pragma unroll 8
        for (Index row = threadIdx.y; row < rows; row += 32) sum += matrix[row * stride + column];
    tile[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    sum = warp_sum(tile[threadIdx.x][threadIdx.y]);  // warp threadIdx.y adds up column threadIdx.y
    column = Index(blockIdx.x) * 32 + threadIdx.y;
    if (threadIdx.x == 0 && column < columns) sums[column] = sum;
}

// (rows, columns) in T -> (gridDim.y, columns) in A: each block takes eight rows one below the other,
// then the next eight that no other has. Blocks of 32 x 8 threads, each with W columns.
template <typename T, typename A, int W>
__global__ void sum_stretches(const T* matrix, A* sums, Index rows, Index columns) {
    __shared__ A of_row[8][32][W];
    Index column = (Index(blockIdx.x) * 32 + threadIdx.x) * W;
    A own[W] = {};
    if (column < columns)
        for (Index row = blockIdx.y * 8 + threadIdx.y; row < rows; row += gridDim.y * 8) {
            Pack<T, W> pack = load<W>(matrix + row * columns + column);
            for (int i = 0; i < W; ++i) own[i] += A(pack.value[i]);
        }
    for (int i = 0; i < W; ++i) of_row[threadIdx.y][threadIdx.x][i] = own[i];
    __syncthreads();
    for (int i = threadIdx.y; i < W; i += 8) {
        if (column >= columns) continue;
        A sum = 0;
        for (int row = 0; row < 8; ++row) sum += of_row[row][threadIdx.x][i];
        sums[blockIdx.y * columns + column + i] = sum;
    }
}

// (rows, columns) in T -> (columns,) in A: the mean of each column, a thread for each W of them.
template <typename T, typename A, int W>
__global__ void mean_rows(const T* matrix, A* means, Index rows, Index columns) {
    Index column = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * W;
    if (column >= columns) return;
    A sums[W] = {};
    #pragma unroll 16
    for (Index row = 0; row < rows; ++row) {
        Pack<T, W> pack = load<W>(matrix + row * columns + column);
        for (int i = 0; i < W; ++i) sums[i] += A(pack.value[i]);
    }
    for (int i = 0; i < W; ++i) means[column + i] = sums[i] / A(rows);
}

// values / divisor, in T.
template <typename T, typename A>
__global__ void divide(const A* values, T* quotients, Index size, A divisor) {
    Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < size) quotients[i] = T(values[i] / divisor);
}

// (rows, columns) -> (rows,), times `scale`. One block a row.
template <typename A>
__global__ void sum_columns(const A* matrix, A* sums, Index columns, double scale) {
    A sum = 0;
    for (Index column = threadIdx.x; column < columns; column += blockDim.x)
        sum += matrix[blockIdx.x * columns + column];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum * A(scale);
}

// The sum of squares of each block's share of `values`, in double, which holds the square of any
// float: (gridDim.x,)
template <typename P, int W>
__global__ void sum_squares(const P* values, Index size, double* sums) {
    double sum = 0;
    Index stride = Index(gridDim.x) * blockDim.x * W;
    for (Index i = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * W; i < size; i += stride) {
        Pack<P, W> pack = load<W>(values + i);
        for (int j = 0; j < W; ++j) sum += double(pack.value[j]) * double(pack.value[j]);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
