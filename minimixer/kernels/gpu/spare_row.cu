// A row put behind a matrix, and the last row of a matrix taken off (spare_row.py). Bytes moved =
// bytes at the least: one read and one write of matrices of a few hundred kilobytes.

template <typename T>
__global__ void append_row(const T* matrix, const T* row, T* both, Index before, Index columns) {
    Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < before + columns) both[i] = i < before ? matrix[i] : row[i - before];
}

template <typename T>
__global__ void split_row(const T* both, T* matrix, T* row, Index before, Index columns) {
    Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < before) matrix[i] = both[i];
    else if (i < before + columns) row[i - before] = both[i];
}
