// The token-mixing MLP of a tile of columns, y = w2 gelu(w1^T x + b1), without its hidden array:
// 384 hidden units of each column live in registers, 64 at a time, and need no memory. Why that
// pays is docs/book/hidden.md; hopper.cu comes before this file. Of one warpgroup:
//
//        x (S, n)         w1 (S, D)                     w2 (S, D)              y (S, n)
//        its 64 columns   64 units at a time            the same 64            its columns
//       +--+--+--+       +--+                          +--+                   +--+--+--+
//       |  |XX|  |  T    |11|     u: 64 x 64    gelu   |22| T                 |  |YY|  |
//     S |  |XX|  |   x   |11|  ->  +----+  ---->  g x  |22|   added up in     |  |YY|  |
//       |  |XX|  |       |11|      |    |             |22|   registers:      |  |YY|  |
//       +--+--+--+       +--+      +----+              +--+   64 x S     T -> +--+--+--+
//
// A warpgroup (128 threads) has 64 columns of x as rows of its products, as that is how many rows a
// tensor core instruction, wgmma, has: x^T in registers, S / 4 of them a thread; y^T too, S / 2. The
// weights come through shared memory, two chunks of 64 units at a time, where two blocks of a
// cluster load a half each and both get the whole. A third warpgroup asks for x and the weights.
// b1 is one more row of w1, for which x has ones.
//
// Two warpgroups take turns with the tensor cores. In its turn one gives them the second product of a
// chunk and, as GELU of the next needs it, the first of the next, even of the next tile:
//
//     group 0   | 22 of c, 11 of c+1 |     GELU of c+1     | 22 of c+1, 11 of c+2 |
//     group 1   |     GELU of c      | 22 of c, 11 of c+1  |     GELU of c+1      |
//
// Backward is the same two products with the weights in each other's place:
//
//     dg = w2^T dy,  du = dg gelu'(u),  dx = w1 du
//
// and u comes from memory, where forward left it, asked for a chunk ahead; g and du, which the
// weights' gradients need, go there. All three are (n, D): a column's units side by side. u has the
// registers of x^T, as dy^T is read from shared memory for every chunk.
//
// For Mixer-B/16 at 256 images, S = 196, D = 384, n = 196,608, forward counts 59.2 GFLOP (62 with
// what is padded), 77 MB of x and 77 of y, 151 of u if it is kept, and 0.24 GB of weights from the
// level-2 cache. Sums are made in a fixed order: along S and then along D.

constexpr int COLUMNS = 64;      // of a warpgroup, the rows of its products
constexpr int TILE = 128;        // of a block, which has two warpgroups that multiply
constexpr int UNITS = 64;        // hidden units at a time: a chunk
constexpr int STAGES = 2;        // chunks and tiles that are there or on their way

constexpr __host__ __device__ int padded(int number, int to) { return (number + to - 1) / to * to; }

// What a thread block has in shared memory; S tokens, D units.
template <int S> struct Shape {
    static constexpr int K = padded(S + 1, 16);  // of the first product: the row of ones, and zeros
    static constexpr int N = padded(S, 8);       // columns of the second product
    static constexpr int FIRST = K * UNITS * 2;  // bytes of a chunk for the first product
    static constexpr int SECOND = N * UNITS * 2, CHUNK = FIRST + SECOND;
    static constexpr int INPUT = K * COLUMNS * 2;  // of a warpgroup's x
};

// ---- weights, as the tensor cores want them ---------------------------------------------------

// A matrix (k, n) of shared memory is a grid of 8 x 8 cores, each 128 bytes: 8 columns of 8 k. Cores
// lie along n first. What is packed is for each chunk the matrix of the first product (K, UNITS), then
// that of the second (UNITS, N): forward w1 with b1, and w2, both (S, D); backward w2, and w1.
template <typename T, int S, int D>
__global__ void pack_weights(const T* w1, const T* b1, const T* w2, T* forward, T* backward) {
    using Sizes = Shape<S>;
    bool back = blockIdx.y;
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int chunk = i / (Sizes::CHUNK / 2), place = i % (Sizes::CHUNK / 2);
    if (chunk >= D / UNITS) return;
    bool in_first = place < Sizes::FIRST / 2;
    int within = in_first ? place : place - Sizes::FIRST / 2;
    int wide = (in_first ? UNITS : Sizes::N) / 8;
    int core = within / 64, k = core / wide * 8 + within % 8, n = core % wide * 8 + within / 8 % 8;
    int token = in_first ? k : n, unit = chunk * UNITS + unit_of(in_first ? n : k);
    T value = T(0.0f);
    if (token < S) value = (in_first != back ? w1 : w2)[token * D + unit];
    else if (in_first && token == S && !back) value = b1[unit];
    (back ? backward : forward)[i] = value;
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
// The same from what a product multiplies.
template <int D, typename T>
__device__ inline void store_units(T* to, const Word (&from)[UNITS / 16][4]) {
    uint4 units[2][2];
    #pragma unroll
    for (int i = 0; i < 4; i++) {
        int half = i / 2, k = i % 2 * 2;
        units[half][i % 2] = {from[k][half], from[k][half + 2], from[k + 1][half], from[k + 1][half + 2]};
    }
    store_units<D>(to, units);
}

// From the first product to what the second one multiplies. Forward `kept` becomes u; backward it is
// u, and becomes g. Four lanes share two rows, 8 apart, of their warp's 16, and each of them has two
// columns of every 8, side by side. A left factor in registers lies the same way, so threads
// exchange nothing between the products.
template <bool BACK, typename T>
__device__ inline void activate(
    const float (&hidden)[UNITS / 2], uint4 (&kept)[2][2], Word (&next)[UNITS / 16][4]
) {
    #pragma unroll
    for (int j = 0; j < UNITS / 8; j++) {
        #pragma unroll
        for (int half = 0; half < 2; half++) {  // rows 8 apart
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

// y^T to where x was, transposed: a thread gives the address of a row's 8 columns (`to`, of its first
// row). Below x ones and zeros stay.
template <typename T, int S>
__device__ inline void put_back(Word to, int row, Word nowhere, const float (&sum)[Shape<S>::N / 2]) {
    #pragma unroll
    for (int j = 0; j < Shape<S>::N / 8; j += 2) {
        int also = j + 1 < Shape<S>::N / 8 ? j + 1 : j;
        store_transposed(8 * j + row < S ? to + 8 * j * COLUMNS * 2 : nowhere,
                         Two<T>::pack(sum[4 * j], sum[4 * j + 1]),
                         Two<T>::pack(sum[4 * j + 2], sum[4 * j + 3]),
                         Two<T>::pack(sum[4 * also], sum[4 * also + 1]),
                         Two<T>::pack(sum[4 * also + 2], sum[4 * also + 3]));
    }
}

// ---- the kernel -------------------------------------------------------------------------------

// Forward (BACK false): x -> y, and u if there is a place for it. Backward: x is dy, y is dx, u is
// read, g and du are written. n is a multiple of TILE; a cluster's two blocks have tiles side by
// side, and walk on by as many as there are blocks, `rounds` times: in the last the second block may
// have none, but goes along, as both load weights for both.
template <typename T, int S, int D, bool BACK>
__global__ __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) void mix_tokens(
    const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap y, const T* packed,
    T* u, T* g, T* du, Index n
) {
    using Sizes = Shape<S>;
    constexpr int CHUNKS = D / UNITS, STEPS = Sizes::K / 16;
    extern __shared__ __align__(1024) unsigned char shared[];
    Word weights = address(shared), inputs = weights + STAGES * Sizes::CHUNK;
    Word barriers = inputs + STAGES * 2 * Sizes::INPUT, nowhere = barriers + 96;
    Word full = barriers, empty = full + 32;   // of weights, for each stage one of each matrix
    Word here = empty + 32, gone = here + 16;  // of x
    int thread = threadIdx.x % 128, group = warpgroup(), rank = rank_in_cluster();
    Index tiles = n / TILE;
    int rounds = (tiles - 1 - (blockIdx.x - rank)) / gridDim.x + 1;

    if (threadIdx.x == 0)
        for (int i = 0; i < STAGES; i++) {
            for (int matrix = 0; matrix < 2; matrix++) {
                start_barrier(full + 16 * i + 8 * matrix, 1);
                start_barrier(empty + 16 * i + 8 * matrix, 16);  // 4 warps, 2 groups, 2 blocks
            }
            start_barrier(here + 8 * i, 1);
            start_barrier(gone + 8 * i, 2);
        }
    constexpr int MORE = (Sizes::K - S) * COLUMNS;  // numbers below x: ones, and zeros
    for (int i = threadIdx.x; i < 2 * STAGES * MORE; i += 384)
        reinterpret_cast<T*>(shared + STAGES * Sizes::CHUNK + i / MORE * Sizes::INPUT)
            [S * COLUMNS + i % MORE] = T(i % MORE < COLUMNS ? 1.0f : 0.0f);
    show_copies();
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
    cluster_sync();

    if (group < 0) {  // ask for what is to come
        // Of 168 registers a thread this group gives most to the others.
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 0) {  // weights, a half of each matrix, and a last first one, for no use
            for (int used = 0; used <= rounds * CHUNKS; used++) {
                int stage = used % STAGES, chunk = used % CHUNKS;
                #pragma unroll
                for (int matrix = 0; matrix < 2; matrix++) {
                    if (matrix && used == rounds * CHUNKS) break;
                    int half = (matrix ? Sizes::SECOND : Sizes::FIRST) / 2;
                    int place = matrix * Sizes::FIRST + rank * half, barrier = 16 * stage + 8 * matrix;
                    wait(empty + barrier, used / STAGES % 2 ^ 1);
                    expect_bytes(full + barrier, 2 * half);
                    copy_to_both(weights + stage * Sizes::CHUNK + place,
                                 reinterpret_cast<const char*>(packed) + chunk * Sizes::CHUNK + place,
                                 half, full + barrier);
                }
            }
        } else if (threadIdx.x == 32) {  // x
            int number = 0;
            for (Index tile = blockIdx.x; tile < tiles; tile += gridDim.x, number++) {
                int stage = number % STAGES;
                wait(gone + 8 * stage, number / STAGES % 2 ^ 1);
                expect_bytes(here + 8 * stage, 2 * S * COLUMNS * 2);
                for (int i = 0; i < 2; i++)
                    copy_tile(inputs + (2 * stage + i) * Sizes::INPUT, &x,
                              tile * TILE + i * COLUMNS, 0, here + 8 * stage);
            }
        }
        __syncwarp();
    } else {  // multiply
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        int lane = thread % 32, warp = thread / 32, used = 0;
        // Lanes 0 to 7 give the addresses of 8 rows of x, 8 to 15 those of the next 8 columns, 16 to
        // 31 the same of the next 8 rows. The tile came swizzled: a row's 8 pieces of 8 columns lie where
        // their number says, with those bits flipped that its own number has.
        int row = lane % 8 + lane / 16 * 8;
        int corner = row * COLUMNS * 2 + 16 * ((2 * warp + lane / 8 % 2) ^ row % 8);
        Index column = Index(blockIdx.x) * TILE + group * COLUMNS + 16 * warp + lane / 4;
        Index place = column * D + lane % 4 * 8;  // in u, g and du
        uint4 kept[2][2], ahead[2][2];            // of a chunk, of the next
        float hidden[UNITS / 2], sum[Sizes::N / 2];
        Word input, a[STEPS][4];  // x, and forward x^T

        auto take = [&](int number, Index tile) {
            int stage = number % STAGES;
            input = inputs + (2 * stage + group) * Sizes::INPUT;
            if (tile < tiles) wait(here + 8 * stage, number / STAGES % 2);
            #pragma unroll
            for (int k = 0; k < STEPS; k++)
                if (!BACK) load_transposed(a[k], input + corner + 16 * k * COLUMNS * 2);
        };
        auto begin_first = [&] {  // product: by w1, backward w2
            Long w1 = matrix(weights + used % STAGES * Sizes::CHUNK, UNITS * 16), x = swizzled(input);
            begin_products();
            #pragma unroll
            for (int k = 0; k < STEPS; k++) {
                Long b = further(w1, k * 2 * UNITS * 16);
                if (BACK) multiply(hidden, further(x, 16 * k * COLUMNS * 2), b, k);
                else multiply(hidden, a[k], b, k);
            }
            commit_products();
        };

        take(0, blockIdx.x);
        if (BACK && blockIdx.x < tiles) load_units<D>(ahead, u + place);
        wait(full, 0);
        begin_first();
        wait_for_products();
        if (group == 1) end_turn(1);  // group 0 begins
        for (int number = 0; number < rounds; number++) {
            Index tile = blockIdx.x + Index(number) * gridDim.x, following = tile + gridDim.x;
            bool mine = tile < tiles;
            Word output = input;
            #pragma unroll 1
            for (int chunk = 0; chunk < CHUNKS; chunk++) {
                bool last = chunk == CHUNKS - 1;
                Word stage = used % STAGES, first = 16 * stage, second = first + 8;
                Index then = place + (last ? Index(gridDim.x) * TILE * D - (D - UNITS) : UNITS);
                if (BACK) {
                    #pragma unroll
                    for (int i = 0; i < 4; i++) kept[i / 2][i % 2] = ahead[i / 2][i % 2];
                    if ((last ? following : tile) < tiles) load_units<D>(ahead, u + then);
                }
                settle(hidden);
                if (lane < 2) arrive_at(empty + first, lane);
                Word next[UNITS / 16][4];  // what the second product multiplies
                activate<BACK, T>(hidden, kept, next);
                T* out = BACK ? g : u;
                if (mine && out) store_units<D>(out + place, kept);
                if (BACK && mine) store_units<D>(du + place, next);
                place = then;

                if (chunk == 0 && number && thread == 0) {  // x, for which `take` waits, comes over y
                    wait_for_stores();
                    arrive(gone + 8 * ((number - 1) % STAGES));
                }
                if (last) take(number + 1, following);
                Long w2 = matrix(weights + stage * Sizes::CHUNK + Sizes::FIRST, Sizes::N * 16);
                wait(full + second, used / STAGES % 2);
                used++;
                wait(full + 16 * (used % STAGES), used / STAGES % 2);
                begin_turn(group);
                begin_products();
                #pragma unroll
                for (int k = 0; k < UNITS / 16; k++)
                    multiply(sum, next[k], further(w2, k * 2 * Sizes::N * 16), chunk | k);
                commit_products();
                begin_first();
                end_turn(group);

                wait_for_products<1>();  // the second
                settle(sum);
                if (lane < 2) arrive_at(empty + second, lane);
                if (last) {  // y, over x, and from there to memory
                    put_back<T, S>(output + corner, row, nowhere, sum);
                    show_copies();
                    sync_warpgroup(group);
                    if (mine && thread == 0)
                        store_tile(&y, tile * TILE + group * COLUMNS, 0, output);
                }
                wait_for_products();
            }
        }
        if (group == 0) begin_turn(0);  // after group 1's last
        wait_for_stores();
    }
    cluster_sync();  // nobody leaves while the other may still write to it
}
