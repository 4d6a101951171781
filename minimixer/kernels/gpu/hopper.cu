// What kernels for Hopper's tensor cores share (compute capability 9.0): PTX that C++ has no words
// for, and GELU on the special function units. hopper.py puts this text before theirs.
//
// A tensor core instruction, wgmma, is given by a warpgroup, 128 threads: it multiplies 64 rows by 16
// columns from registers or shared memory with 16 rows from shared memory, adds that up in all
// threads' registers, while they do other things. Shared memory is filled by copies that say to a
// barrier how many bytes have come. So some threads ask for what comes, and warpgroups multiply it.

typedef unsigned Word;  // two numbers of two bytes, or an address in shared memory
typedef unsigned long long Long;

struct alignas(64) TensorMap { char data[128]; };  // of a matrix whose tiles are copied: hopper.py

// ---- barriers and copies ----------------------------------------------------------------------

__device__ inline Word address(const void* shared) {
    return static_cast<Word>(__cvta_generic_to_shared(shared));
}

// A barrier counts arrivals, and bytes that copies bring. Each time all have come its phase flips.
__device__ inline void start_barrier(Word barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals));
}
__device__ inline void expect_bytes(Word barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(barrier), "r"(bytes) : "memory");
}
__device__ inline void arrive(Word barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
}
__device__ inline void arrive_at(Word barrier, int block) {  // of the cluster
    asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there]; }"
                 :: "r"(barrier), "r"(block) : "memory");
}
// Until a phase of this parity is over. A new barrier is in phase 0, and 1 counts as over: so the
// first wait for an empty place (`^ 1`) passes.
__device__ inline void wait(Word barrier, int phase) {
    asm volatile("{ .reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again; }"
                 :: "r"(barrier), "r"(phase) : "memory");
}
__device__ inline void copy_to_both(Word to, const void* from, int bytes, Word barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1], %2, [%3], %4;"
                 :: "r"(to), "l"(from), "r"(bytes), "r"(barrier), "h"(short(3)) : "memory");
}
__device__ inline void copy_tile(Word to, const void* map, int column, int row, Word barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];"
                 :: "r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier) : "memory");
}
__device__ inline void show_copies() {  // and products what this thread wrote
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// A tile back. Its place is free when this thread has waited for stores.
__device__ inline void store_tile(const void* map, int column, int row, Word from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];\n"
                 "cp.async.bulk.commit_group;"
                 :: "l"(map), "r"(column), "r"(row), "r"(from) : "memory");
}
__device__ inline void wait_for_stores() {
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ inline uint4 load_four(Word from) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(from) : "memory");
    return x;
}
__device__ inline void cluster_sync() {
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
__device__ inline int rank_in_cluster() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// -1 of the first warpgroup, 0 and 1 of those that multiply. Lane 0's, so that the compiler knows that
// a warp has one, and computes what follows from it once.
__device__ inline int warpgroup() {
    return __shfl_sync(0xffffffff, threadIdx.x / 128, 0) - 1;
}
__device__ inline void sync_warpgroup(int group) {
    asm volatile("bar.sync %0, 128;" :: "r"(group + 3) : "memory");
}
// Two warpgroups take turns with the tensor cores. Left to themselves they come to wait for the same
// things at once, and then compute GELU side by side while the tensor cores rest.
__device__ inline void begin_turn(int group) {
    asm volatile("bar.sync %0, 256;" :: "r"(group + 1) : "memory");
}
__device__ inline void end_turn(int group) {  // the other's begins
    asm volatile("bar.arrive %0, 256;" :: "r"(2 - group) : "memory");
}

// ---- products -----------------------------------------------------------------------------------

// Four 8 x 8 matrices, transposed: from shared memory, and back.
__device__ inline void load_transposed(Word (&to)[4], Word from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
}
__device__ inline void store_transposed(Word to, Word a, Word b, Word c, Word d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
                 :: "r"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

// Where a matrix of 8 x 8 cores lies: its address, bytes between them along k and along n.
__device__ inline Long matrix(Word at, int along_k, int along_n = 128) {
    return Long(at >> 4 & 0x3fff) | Long(along_k >> 4) << 16 | Long(along_n >> 4) << 32;
}

__device__ inline Long swizzled(Word at) {  // of rows of 128 bytes, as tensor maps bring them
    return Long(at >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
// The matrix so many bytes further on: one addition.
__device__ inline Long further(Long matrix, int bytes) { return matrix + (bytes >> 4); }

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() {  // until they are waited for, nobody may touch what they use
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int BUT = 0> __device__ inline void wait_for_products() {  // all, but the last BUT groups
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(BUT) : "memory");
}
template <int COUNT> __device__ inline void settle(float (&sum)[COUNT]) {  // used from here on only
    #pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(sum[i]) :: "memory");
}

// Hidden unit of column `n` of a chunk. A thread has columns 8 j + 2 t and 8 j + 2 t + 1 of all j
// (t: its place among 4); in this order those of 4 j are 8 units side by side in u, g and du.
__host__ __device__ inline int unit_of(int n) {
    int j = n / 8, t = n % 8 / 2;
    return 32 * (j / 4) + 8 * t + 2 * (j % 4) + n % 2;
}

// multiply(sum, a, b, add): sum (64, N) = [sum +] a (64, 16) b (16, N). hopper.py writes it for each
// N, with a from registers, or from shared memory, there also transposed.

// ---- GELU, in its tanh form -------------------------------------------------------------------

__device__ inline float quick_tanh(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

constexpr float SLOPE_AT_0 = 0.7978845608f, CUBIC = 0.044715f;  // gelu.cu

__device__ inline float gelu(float u) {
    return u * (0.5f + 0.5f * quick_tanh(u * (SLOPE_AT_0 + SLOPE_AT_0 * CUBIC * (u * u))));
}

// The same, and in `slope` its derivative.
__device__ inline float gelu(float u, float& slope) {
    float squared = fminf(u * u, 100.0f);  // no 0 times infinity
    float t = quick_tanh(u * (SLOPE_AT_0 + SLOPE_AT_0 * CUBIC * squared)), share = 0.5f + 0.5f * t;
    slope = share + u * (1.0f - t * t) * (0.5f * SLOPE_AT_0 + 1.5f * SLOPE_AT_0 * CUBIC * squared);
    return u * share;
}

template <typename T> struct Two;
template <> struct Two<__nv_bfloat16> {
    static __device__ Word pack(float low, float high) {
        __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
        return *reinterpret_cast<Word*>(&both);
    }
    static __device__ float2 unpack(Word both) {
        return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&both));
    }
};
template <> struct Two<__half> {
    static __device__ Word pack(float low, float high) {
        __half2 both = __floats2half2_rn(low, high);
        return *reinterpret_cast<Word*>(&both);
    }
    static __device__ float2 unpack(Word both) {
        return __half22float2(*reinterpret_cast<__half2*>(&both));
    }
};
