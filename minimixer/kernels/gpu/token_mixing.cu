// The token-mixing MLP of a tile of columns, y = w2 gelu(w1^T x + b1), without its hidden array:
// 384 hidden units of each column live in registers, 64 at a time, and never see memory.
//
//        x (S, n)         w1 (S, D)                     w2 (S, D)              y (S, n)
//        128 columns      64 units at a time            the same 64            128 columns
//       +--+--+--+       +--+                          +--+                   +--+--+--+
//       |  |XX|  |  T    |11|     u = 64 x 64   gelu   |22| T                 |  |YY|  |
//     S |  |XX|  |   x   |11|  ->  +----+  ---->  g x  |22|   added up in     |  |YY|  |
//       |  |XX|  |       |11|      |    |             |22|   registers:      |  |YY|  |
//       +--+--+--+       +--+      +----+              +--+   64 x S     T -> +--+--+--+
//
// A warpgroup (128 threads) has 64 columns of x as rows of its products, as that is how many rows a
// tensor core instruction, wgmma, has: x^T in registers, S / 4 of them a thread; y^T too, S / 2. The
// weights come through shared memory, two chunks of 64 units at a time, where two blocks of a
// cluster load a half each and both get the whole. A third warpgroup asks for all that is to come.
// b1 is one more row of w1, for which x has ones.
//
// Backward is the same two products with the weights in each other's place:
//
//     dg = w2^T dy,  du = dg gelu'(u),  dx = w1 du
//
// and u comes from memory, where forward left it; g and du, which the weights' gradients need, go
// there. All three are (n, D): a column's units side by side.
//
// For Mixer-B/16 at 256 images, S = 196, D = 384, n = 196,608, forward counts 59.2 GFLOP (62 with
// what is padded), 77 MB of x and 77 of y, 151 of u if it is kept, and 0.23 GB of weights from the
// level-2 cache. Sums are made in a fixed order: along S and then along D.

constexpr int COLUMNS = 64;      // of a warpgroup, the rows of its products
constexpr int TILE = 128;        // of a block, which has two warpgroups that multiply
constexpr int UNITS = 64;        // hidden units at a time: a chunk
constexpr int PITCH = 2 * TILE + 16;  // bytes from a row of x to the next: no two in the same banks

constexpr __host__ __device__ int padded(int number, int to) { return (number + to - 1) / to * to; }

// What a thread block has in shared memory; S tokens, D units.
template <int S> struct Shape {
    static constexpr int K = padded(S + 1, 16);  // of the first product: the row of ones, and zeros
    static constexpr int N = padded(S, 8);       // columns of the second product
    static constexpr int FIRST = K * UNITS * 2;  // bytes of a chunk for the first product
    static constexpr int CHUNK = FIRST + N * UNITS * 2;
    static constexpr int INPUT = K * PITCH;      // bytes of a tile of x
    static constexpr int BYTES = 2 * CHUNK + 2 * INPUT + 128;
};

// ---- weights, as the tensor cores want them ---------------------------------------------------

// Hidden unit of column `n` of a chunk. A thread has columns 8 j + 2 t and 8 j + 2 t + 1 of all j
// (t: its place among 4); this order makes of 4 j 8 units that lie side by side in u, g and du.
__host__ __device__ inline int unit_of(int n) {
    int j = n / 8, t = n % 8 / 2;
    return 32 * (j / 4) + 8 * t + 2 * (j % 4) + n % 2;
}

// A matrix (k, n) of shared memory is a grid of 8 x 8 cores, each 128 bytes: 8 columns of 8 k. Cores
// lie along n first. `packed` is for each chunk the matrix of the first product (K, UNITS), from
// first (S, D) and bias, then that of the second (UNITS, N), from second (S, D).
template <typename T, int S, int D>
__global__ void pack_weights(const T* first, const T* bias, const T* second, T* packed) {
    using Sizes = Shape<S>;
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int chunk = i / (Sizes::CHUNK / 2), place = i % (Sizes::CHUNK / 2);
    if (chunk >= D / UNITS) return;
    bool in_first = place < Sizes::FIRST / 2;
    int within = in_first ? place : place - Sizes::FIRST / 2;
    int wide = (in_first ? UNITS : Sizes::N) / 8;
    int core = within / 64, k = core / wide * 8 + within % 8, n = core % wide * 8 + within / 8 % 8;
    T value = T(0.0f);
    if (in_first) {
        int unit = chunk * UNITS + unit_of(n);
        if (k < S) value = first[k * D + unit];
        else if (k == S && bias) value = bias[unit];
    } else if (n < S) value = second[n * D + chunk * UNITS + unit_of(k)];
    packed[i] = value;
}

// ---- what C++ has no words for ----------------------------------------------------------------

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
__device__ inline void wait(Word barrier, int phase) {
    asm volatile("{ .reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again; }"
                 :: "r"(barrier), "r"(phase) : "memory");
}
__device__ inline void copy(Word to, const void* from, int bytes, Word barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];"
                 :: "r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
__device__ inline void copy_to_both(Word to, const void* from, int bytes, Word barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1], %2, [%3], %4;"
                 :: "r"(to), "l"(from), "r"(bytes), "r"(barrier), "h"(short(3)) : "memory");
}
__device__ inline void cluster_sync() {
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
__device__ inline int rank_in_cluster() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ inline void sync_warpgroup(int number) {
    asm volatile("bar.sync %0, 128;" :: "r"(number + 1) : "memory");
}

// Four 8 x 8 matrices, transposed: from shared memory, and back.
__device__ inline void load_transposed(Word (&to)[4], Word from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
}
__device__ inline void store_transposed(Word to, Word a, Word b, Word c, Word d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
                 :: "r"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

// Where a matrix of cores lies: its address, bytes between cores along k and along n.
__device__ inline Long matrix(Word at, int along_k, int along_n = 128) {
    return Long(at >> 4 & 0x3fff) | Long(along_k >> 4) << 16 | Long(along_n >> 4) << 32;
}

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() {  // until they are waited for, nobody may touch what they use
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ inline void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// multiply(sum, a, b, add): sum (64, N) = [sum +] a (64, 16) b (16, N), for the two N: token_mixing.py
// writes both before this text.

// ---- GELU, in its tanh form -------------------------------------------------------------------

__device__ inline float quick_tanh(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

constexpr float SLOPE_AT_0 = 0.7978845608f, CUBIC = 0.044715f;  // gelu.cu

__device__ inline float gelu(float u) {
    float half = 0.5f * u;
    return half + half * quick_tanh(u * (SLOPE_AT_0 + SLOPE_AT_0 * CUBIC * u * u));
}

// gelu(u), and in `slope` its derivative.
__device__ inline float gelu(float u, float& slope) {
    float squared = fminf(u * u, 100.0f), half = 0.5f * u;  // no 0 times infinity
    float t = quick_tanh(u * (SLOPE_AT_0 + SLOPE_AT_0 * CUBIC * squared));
    slope = 0.5f + 0.5f * t + half * (1.0f - t * t) * (SLOPE_AT_0 + 3 * SLOPE_AT_0 * CUBIC * squared);
    return half + half * t;
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

// A thread's units of its two columns, 8 apart, in u, g or du: 8, and 8 more 32 further.
template <int D, typename T> __device__ inline void load_units(uint4 (&to)[2][2], const T* from) {
    #pragma unroll
    for (int i = 0; i < 4; i++)
        to[i / 2][i % 2] = *reinterpret_cast<const uint4*>(from + i / 2 * 8 * D + i % 2 * 32);
}
template <int D, typename T> __device__ inline void store_units(T* to, const uint4 (&from)[2][2]) {
    #pragma unroll
    for (int i = 0; i < 4; i++)
        *reinterpret_cast<uint4*>(to + i / 2 * 8 * D + i % 2 * 32) = from[i / 2][i % 2];
}

// ---- the kernel -------------------------------------------------------------------------------

// Forward (BACK false): x -> y, and u if there is a place for it. Backward: x is dy, y is dx, u is
// read, g and du are written. n is a multiple of TILE; a cluster's two blocks have tiles side by
// side, and walk on by as many as there are blocks.
template <typename T, int S, int D, bool BACK>
__global__ __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) void mix_tokens(
    const T* x, const T* packed, T* y, T* u, T* g, T* du, Index n
) {
    using Sizes = Shape<S>;
    constexpr int CHUNKS = D / UNITS, ROUNDS = Sizes::K / 16;
    extern __shared__ __align__(128) unsigned char shared[];
    Word weights = address(shared), inputs = weights + 2 * Sizes::CHUNK;
    Word barriers = inputs + 2 * Sizes::INPUT;
    Word full = barriers, empty = barriers + 16, here = barriers + 32, gone = barriers + 48;
    int thread = threadIdx.x % 128, group = threadIdx.x / 128 - 1, rank = rank_in_cluster();
    Index tiles = n / TILE;

    if (threadIdx.x == 0)
        for (int i = 0; i < 2; i++) {
            start_barrier(full + 8 * i, 1);
            start_barrier(empty + 8 * i, 16);  // four warps of two warpgroups of two blocks
            start_barrier(here + 8 * i, 1);
            start_barrier(gone + 8 * i, 2);
        }
    for (int i = threadIdx.x; i < 2 * (Sizes::K - S) * TILE; i += 384) {  // ones, and zeros
        int row = i / TILE % (Sizes::K - S), buffer = i / TILE / (Sizes::K - S);
        unsigned char* at = shared + 2 * Sizes::CHUNK + buffer * Sizes::INPUT + (S + row) * PITCH;
        reinterpret_cast<T*>(at)[i % TILE] = T(row == 0 ? 1.0f : 0.0f);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
    cluster_sync();

    if (group < 0) {  // ask for what is to come
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) {  // weights
            int used = 0, half = Sizes::CHUNK / 2;
            const char* from = reinterpret_cast<const char*>(packed) + rank * half;
            for (Index first = blockIdx.x - rank; first < tiles; first += gridDim.x)
                #pragma unroll 1
                for (int chunk = 0; chunk < CHUNKS; chunk++, used++) {
                    int stage = used & 1;
                    wait(empty + 8 * stage, (used >> 1 & 1) ^ 1);
                    expect_bytes(full + 8 * stage, Sizes::CHUNK);
                    copy_to_both(weights + stage * Sizes::CHUNK + rank * half,
                                 from + chunk * Sizes::CHUNK, half, full + 8 * stage);
                }
        } else if (threadIdx.x / 32 == 1) {  // x
            int number = 0, lane = threadIdx.x % 32;
            for (Index tile = blockIdx.x; tile < tiles; tile += gridDim.x, number++) {
                int buffer = number & 1;
                wait(gone + 8 * buffer, (number >> 1 & 1) ^ 1);
                if (lane == 0) expect_bytes(here + 8 * buffer, S * 2 * TILE);
                __syncwarp();
                for (int row = lane; row < S; row += 32)
                    copy(inputs + buffer * Sizes::INPUT + row * PITCH,
                         x + row * n + tile * TILE, 2 * TILE, here + 8 * buffer);
            }
        }
        __syncwarp();
    } else {  // multiply
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        int lane = thread % 32, warp = thread / 32, used = 0, number = 0;
        for (Index first = blockIdx.x - rank; first < tiles; first += gridDim.x, number++) {
            Index tile = first + rank;
            bool mine = tile < tiles;
            int buffer = number & 1;
            Word input = inputs + buffer * Sizes::INPUT + group * 2 * COLUMNS;
            Word a[ROUNDS][4];
            if (mine) wait(here + 8 * buffer, number >> 1 & 1);
            // Lanes 0 to 7 give the addresses of 8 rows of x, 8 to 15 those of the next 8 columns,
            // 16 to 31 the same of the next 8 rows.
            Word at = input + (lane % 8 + lane / 16 * 8) * PITCH + (16 * warp + lane / 8 % 2 * 8) * 2;
            #pragma unroll
            for (int k = 0; k < ROUNDS; k++) load_transposed(a[k], at + 16 * k * PITCH);

            float sum[Sizes::N / 2];
            #pragma unroll
            for (int i = 0; i < Sizes::N / 2; i++) sum[i] = 0;
            Index column = tile * TILE + group * COLUMNS + 16 * warp + lane / 4;
            Index place = column * D + lane % 4 * 8;  // in u, g and du
            uint4 kept[2][2];
            if (BACK && mine) load_units<D>(kept, u + place);
            #pragma unroll 1
            for (int chunk = 0; chunk < CHUNKS; chunk++, used++, place += UNITS) {
                int stage = used & 1;
                Word first_matrix = weights + stage * Sizes::CHUNK;
                Word second_matrix = first_matrix + Sizes::FIRST;
                float hidden[UNITS / 2];
                wait(full + 8 * stage, used >> 1 & 1);
                begin_products();
                #pragma unroll
                for (int k = 0; k < ROUNDS; k++)
                    multiply(hidden, a[k], matrix(first_matrix + k * 2 * UNITS * 16, UNITS * 16), k);
                commit_products();
                wait_for_products();
                Word next[UNITS / 16][4];  // what the second product multiplies
                #pragma unroll
                for (int j = 0; j < UNITS / 8; j++) {
                    #pragma unroll
                    for (int half = 0; half < 2; half++) {  // columns 8 apart
                        float low = hidden[4 * j + 2 * half], high = hidden[4 * j + 2 * half + 1];
                        Word& pair = (&kept[half][j / 4].x)[j % 4];
                        Word& out = next[j / 2][half + j % 2 * 2];
                        if (BACK) {
                            float2 before = Two<T>::unpack(pair);
                            float slope_low, slope_high;
                            float g_low = gelu(before.x, slope_low), g_high = gelu(before.y, slope_high);
                            out = Two<T>::pack(low * slope_low, high * slope_high);
                            pair = Two<T>::pack(g_low, g_high);
                        } else {
                            pair = Two<T>::pack(low, high);
                            out = Two<T>::pack(gelu(low), gelu(high));
                        }
                    }
                }
                begin_products();
                #pragma unroll
                for (int k = 0; k < UNITS / 16; k++)
                    multiply(sum, next[k], matrix(second_matrix + k * 2 * Sizes::N * 16, Sizes::N * 16), 1);
                commit_products();
                T* out = BACK ? g : u;
                if (mine && out) store_units<D>(out + place, kept);
                if (BACK && mine && chunk + 1 < CHUNKS) load_units<D>(kept, u + place + UNITS);
                wait_for_products();
                if (lane == 0)
                    for (int block = 0; block < 2; block++) arrive_at(empty + 8 * stage, block);
                if (BACK && mine) {
                    uint4 units[2][2];
                    #pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int half = i / 2, k = i % 2 * 2;
                        units[half][i % 2] = {next[k][half], next[k][half + 2], next[k + 1][half],
                                              next[k + 1][half + 2]};
                    }
                    store_units<D>(du + place, units);
                }
            }

            // y^T to where x was, transposed, and from there to memory, 16 bytes a thread. Rows
            // from S on are ones and zeros, which stay: what is padded goes nowhere.
            #pragma unroll
            for (int j = 0; j < Sizes::N / 8; j += 2) {
                int row = 8 * j + lane % 8 + lane / 16 * 8;
                Word to = input + row * PITCH + (16 * warp + lane / 8 % 2 * 8) * 2;
                if (row >= S) to = barriers + 64;  // a place that nobody reads
                constexpr int LAST = Sizes::N / 8 - 1;
                int second = j < LAST ? j + 1 : j;
                store_transposed(to, Two<T>::pack(sum[4 * j], sum[4 * j + 1]),
                                 Two<T>::pack(sum[4 * j + 2], sum[4 * j + 3]),
                                 Two<T>::pack(sum[4 * second], sum[4 * second + 1]),
                                 Two<T>::pack(sum[4 * second + 2], sum[4 * second + 3]));
            }
            sync_warpgroup(group);
            if (mine)
                for (int i = thread; i < S * COLUMNS / 8; i += 128) {
                    int row = i / (COLUMNS / 8), part = i % (COLUMNS / 8);
                    const unsigned char* from = shared + (input - weights) + row * PITCH + 16 * part;
                    *reinterpret_cast<uint4*>(y + row * n + tile * TILE + group * COLUMNS + 8 * part) =
                        *reinterpret_cast<const uint4*>(from);
                }
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            sync_warpgroup(group);
            if (mine && thread == 0) arrive(gone + 8 * buffer);
        }
    }
    cluster_sync();  // nobody leaves while the other may still write to it
}
