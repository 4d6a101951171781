// The token-mixing MLP of a tile of columns, y = w2 gelu(w1^T x + b1), without its hidden array:
// 384 hidden units of each column live in registers, 64 at a time, and never see memory.
//
//        x (S, n)         w1 (S, D)                     w2 (S, D)              y (S, n)
//        128 columns      64 units at a time            the same 64            128 columns
//       +--+--+--+       +--+                          +--+                   +--+--+--+
//       |  |XX|  |  T    |11|     u: 64 x 64    gelu   |22| T                 |  |YY|  |
//     S |  |XX|  |   x   |11|  ->  +----+  ---->  g x  |22|   added up in     |  |YY|  |
//       |  |XX|  |       |11|      |    |             |22|   registers:      |  |YY|  |
//       +--+--+--+       +--+      +----+              +--+   64 x S     T -> +--+--+--+
//
// A warpgroup (128 threads) has 64 columns of x as rows of its products, as that is how many rows a
// tensor core instruction, wgmma, has: x^T in registers, S / 4 of them a thread; y^T too, S / 2. The
// weights come through shared memory, where three chunks of 64 units have a place; two blocks of a
// cluster load a half of each and both get the whole. A third warpgroup asks for all that is to come.
// b1 is one more row of w1, for which x has ones.
//
// Two warpgroups take turns with the tensor cores: while one multiplies, the other computes GELU of
// what it has multiplied. In a turn is the second product of one chunk and the first of the next:
//
//     group 0   | w2 of c-1, w1 of c |     gelu of c      | w2 of c, w1 of c+1 |   gelu of c+1
//     group 1   |    gelu of c-1     | w2 of c-1, w1 of c |     gelu of c      | w2 of c, ...
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
constexpr int STAGES = 3;        // chunks that are there or on their way
constexpr int PITCH = 2 * TILE + 16;  // bytes from a row of x to the next: no two in the same banks
constexpr int ROWS = 48, OUT_PITCH = 48;  // of y's 16 columns that are a warp's: stored at a time

constexpr __host__ __device__ int padded(int number, int to) { return (number + to - 1) / to * to; }

// What a thread block has in shared memory; S tokens, D units.
template <int S> struct Shape {
    static constexpr int K = padded(S + 1, 16);  // of the first product: the row of ones, and zeros
    static constexpr int N = padded(S, 8);       // columns of the second product
    static constexpr int FIRST = K * UNITS * 2;  // bytes of a chunk for the first product
    static constexpr int CHUNK = FIRST + N * UNITS * 2;
    static constexpr int INPUT = K * PITCH;      // bytes of a tile of x
    static constexpr int OUTPUT = 8 * ROWS * OUT_PITCH;  // of y, for each warp
    static constexpr int BYTES = STAGES * CHUNK + INPUT + OUTPUT + 128;
};

// ---- weights, as the tensor cores want them ---------------------------------------------------

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

// From the first product to what the second one multiplies. Forward `kept` becomes u; backward it is
// u, and becomes g.
template <bool BACK, typename T>
__device__ inline void activate(
    const float (&hidden)[UNITS / 2], uint4 (&kept)[2][2], Word (&next)[UNITS / 16][4]
) {
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
    constexpr int CHUNKS = D / UNITS, ROUNDS = Sizes::K / 16, SECOND = Sizes::CHUNK - Sizes::FIRST;
    extern __shared__ __align__(128) unsigned char shared[];
    Word weights = address(shared), input = weights + STAGES * Sizes::CHUNK;
    Word outputs = input + Sizes::INPUT, barriers = outputs + Sizes::OUTPUT;
    // Of the matrices of each stage, w1 and w2, and of x: has it come, is it used up?
    Word full = barriers, empty = full + 16 * STAGES, here = empty + 16 * STAGES, gone = here + 8;
    int thread = threadIdx.x % 128, group = threadIdx.x / 128 - 1, rank = rank_in_cluster();
    Index tiles = n / TILE;

    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * STAGES; i++) {
            start_barrier(full + 8 * i, 1);
            start_barrier(empty + 8 * i, 16);  // four warps of two warpgroups of two blocks
        }
        start_barrier(here, 1);
        start_barrier(gone, 8);  // each warp that multiplies
    }
    for (int i = threadIdx.x; i < (Sizes::K - S) * TILE; i += 384) {  // ones, and zeros
        int row = i / TILE;
        unsigned char* at = shared + STAGES * Sizes::CHUNK + (S + row) * PITCH;
        reinterpret_cast<T*>(at)[i % TILE] = T(row == 0 ? 1.0f : 0.0f);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
    cluster_sync();

    if (group < 0) {  // ask for what is to come
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) {  // weights, a half of each matrix
            int place = 0, round = 0;
            for (Index first = blockIdx.x - rank; first < tiles; first += gridDim.x)
                #pragma unroll 1
                for (int part = 0; part < 2 * CHUNKS; part++) {
                    int bytes = part % 2 ? SECOND : Sizes::FIRST;
                    int at = part % 2 * Sizes::FIRST + rank * bytes / 2;
                    wait(empty + 8 * place, round ^ 1);
                    expect_bytes(full + 8 * place, bytes);
                    copy_to_both(weights + place / 2 * Sizes::CHUNK + at,
                                 reinterpret_cast<const char*>(packed) + part / 2 * Sizes::CHUNK + at,
                                 bytes / 2, full + 8 * place);
                    if (++place == 2 * STAGES) place = 0, round ^= 1;
                }
        } else if (threadIdx.x / 32 == 1) {  // x
            int round = 0, lane = threadIdx.x % 32;
            for (Index tile = blockIdx.x; tile < tiles; tile += gridDim.x, round ^= 1) {
                wait(gone, round ^ 1);
                if (lane == 0) expect_bytes(here, S * 2 * TILE);
                __syncwarp();
                for (int row = lane; row < S; row += 32)
                    copy(input + row * PITCH, x + row * n + tile * TILE, 2 * TILE, here);
            }
        }
        __syncwarp();
    } else {  // multiply
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        int lane = thread % 32, warp = thread / 32;
        // Where lanes 0 to 7 find 8 rows of x, 8 to 15 those of the next 8 columns, 16 to 31 the
        // same of the next 8 rows.
        int corner = (lane % 8 + lane / 16 * 8) * PITCH
                   + (group * COLUMNS + 16 * warp + lane / 8 % 2 * 8) * 2;
        Index own = group * COLUMNS + 16 * warp + lane / 4;  // column of a tile
        Word a[ROUNDS][4], next[UNITS / 16][4];
        float hidden[UNITS / 2], sum[Sizes::N / 2];
        uint4 kept[2][2];
        Index first = blockIdx.x - rank, tile = first + rank;
        Index place = (tile * TILE + own) * D + lane % 4 * 8;  // in u, g and du
        if (BACK && tile < tiles) load_units<D>(kept, u + place);
        if (group == 1) end_turn(1);

        // A step more than there are chunks: each has the second product of the step before, and
        // the first one of its own. What the first and the last of these tell nobody looks at.
        int chunk = 0, stage = 0, before = STAGES - 1, round = 0, round_before = 0, tile_round = 0;
        #pragma unroll 1
        for (bool started = false;; started = true) {
            bool more = first < tiles, mine = tile < tiles;
            if (chunk == 0 && mine) {
                wait(here, tile_round);
                #pragma unroll
                for (int k = 0; k < ROUNDS; k++) load_transposed(a[k], input + corner + 16 * k * PITCH);
                tile_round ^= 1;
            }
            Word w1 = weights + stage * Sizes::CHUNK;
            Word w2 = weights + before * Sizes::CHUNK + Sizes::FIRST;
            if (started) wait(full + 16 * before + 8, round_before);
            if (more) wait(full + 16 * stage, round);
            int add = CHUNKS > 1 && chunk != 1;
            begin_turn(group);
            begin_products();
            #pragma unroll
            for (int k = 0; k < ROUNDS; k++)
                multiply(hidden, a[k], matrix(w1 + k * 2 * UNITS * 16, UNITS * 16), k);
            #pragma unroll  // the longer ones last: the other group is ready when they end
            for (int k = 0; k < UNITS / 16; k++)
                multiply(sum, next[k], matrix(w2 + k * 2 * Sizes::N * 16, Sizes::N * 16), add | k);
            commit_products();
            end_turn(group);
            wait_for_products<0>();
            settle(sum);
            settle(hidden);
            if (lane == 0 && chunk == 0 && mine) arrive(gone);  // now that x was read for sure
            if (lane == 0)
                for (int block = 0; block < 2; block++) {
                    if (started) arrive_at(empty + 16 * before + 8, block);
                    if (more) arrive_at(empty + 16 * stage, block);
                }
            before = stage, round_before = round;
            if (++stage == STAGES) stage = 0, round ^= 1;

            if (chunk == 0 && started) {
                // y^T to shared memory, transposed, and from there to memory, 16 bytes a thread.
                Index left = (tile - gridDim.x) * TILE + group * COLUMNS + 16 * warp;
                int output = Sizes::INPUT + (4 * group + warp) * ROWS * OUT_PITCH;
                #pragma unroll
                for (int j = 0; j < Sizes::N; j += ROWS) {
                    __syncwarp();
                    #pragma unroll
                    for (int i = j / 8; 8 * i < j + ROWS && 8 * i < Sizes::N; i += 2) {
                        int also = i + 1 < Sizes::N / 8 ? i + 1 : i;
                        store_transposed(
                            input + output + (8 * i - j + lane % 8 + lane / 16 * 8) * OUT_PITCH
                                + lane / 8 % 2 * 16,
                            Two<T>::pack(sum[4 * i], sum[4 * i + 1]),
                            Two<T>::pack(sum[4 * i + 2], sum[4 * i + 3]),
                            Two<T>::pack(sum[4 * also], sum[4 * also + 1]),
                            Two<T>::pack(sum[4 * also + 2], sum[4 * also + 3]));
                    }
                    __syncwarp();
                    #pragma unroll
                    for (int row = lane / 2; row < ROWS; row += 16)
                        if (j + row < S && left < n)
                            *reinterpret_cast<uint4*>(y + (j + row) * n + left + lane % 2 * 8) =
                                *reinterpret_cast<const uint4*>(shared + (input - weights) + output
                                    + row * OUT_PITCH + lane % 2 * 16);
                }
            }
            if (!more) break;

            activate<BACK, T>(hidden, kept, next);
            T* out = BACK ? g : u;
            if (mine && out) store_units<D>(out + place, kept);
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
            place += UNITS;
            if (++chunk == CHUNKS) {  // on to the next tile
                chunk = 0;
                first += gridDim.x, tile += gridDim.x;
                place += (gridDim.x * Index(TILE) - 1) * D;
            }
            if (BACK && tile < tiles) load_units<D>(kept, u + place);
        }
        if (group == 0) begin_turn(0);  // whose turn nobody takes
    }
    cluster_sync();  // nobody leaves while the other may still write to it
}
