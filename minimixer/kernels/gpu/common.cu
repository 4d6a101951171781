// What every kernel file begins with (kernels are compiled as this text plus theirs).
//
// T is the type that numbers are stored in: __nv_bfloat16, __half, float or double. Arithmetic is
// done in A: double for double, float for all others. A GPU moves memory fastest in packs of 16
// bytes a thread, W numbers: 8 of two bytes, 4 floats, 2 doubles. Where a row's length or an
// address is no multiple of that, the same code runs with W = 1, correct and slower.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef long long Index;  // of elements: tensors may have more than 2^31

template <typename T> struct Arithmetic { typedef float type; };
template <> struct Arithmetic<double> { typedef double type; };

template <typename T, int W> struct alignas(sizeof(T) * W) Pack { T value[W]; };

template <int W, typename T>
__device__ Pack<T, W> load(const T* from) { return *reinterpret_cast<const Pack<T, W>*>(from); }

template <int W, typename T>
__device__ void store(T* to, const Pack<T, W>& pack) { *reinterpret_cast<Pack<T, W>*>(to) = pack; }

// `a b`, rounded: never fused with an addition that follows, where equal terms must cancel.
__device__ inline float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// The sum over the 32 threads of a warp, known to all of them, always added in the same order.
template <typename A>
__device__ A warp_sum(A value) {
    for (int distance = 16; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xffffffff, value, distance);
    return value;
}

// The same over a block of up to 1024 threads, whole warps; known to all of them.
template <typename A>
__device__ A block_sum(A value) {
    __shared__ A of_warp[32];
    value = warp_sum(value);
    __syncthreads();  // of_warp may still be read from an earlier call
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    value = threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : A(0);
    return warp_sum(value);
}
