// Channel mixing's products with GELU where they are stored. Forward:
//
//     u = x w1 + b1,  g = gelu(u)
//
// Backward, with sums of du over rows:
//
//     dg = dy w2^T,  du = dg gelu'(u)
//
// So neither GELU, nor its slope, nor the bias needs a pass over an array of 4 C numbers a token. Forward
// keeps g and gelu'(u) (SLOPE): backward only multiplies, and writes du over the slope. Or it keeps u
// alone (U), half as much: backward makes g and the slope again, and writes g over u.
//
//          a (rows, depth)            b (depth, columns)            a tile of the result
//        +--------------+             +----+----+----+             +----+----+----+
//    128 | 64 | 64 |... |          64 |    | N  |    |         128 |    | XX |    |
//        +--------------+             |....|....|....|             +----+----+----+
//                                     +----+----+----+
//
// A warpgroup (128 threads) has a tile of 128 rows and N columns of the result in its registers: 192
// if that divides all columns, else 128; backward of U the other way round. Two take turns with the tensor
// cores: while one multiplies, the other computes GELU of what it has multiplied, and stores it.
//
//     group 0   | tile 0: products |  tile 0: GELU    | tile 2: products |  tile 2: GELU
//     group 1   |                  | tile 1: products |  tile 1: GELU    | tile 3: products
//
// A third asks for what is to come, 64 of the depth at a time: its block's 128 rows of a, and b, of
// which two blocks of a cluster, one below the other, load a half each and both get the whole; backward
// also the tile of what was kept. The order of all sums is fixed.
//
// For Mixer-B/16 at 256 images (50,176 rows, 768 to 3,072) that is 237 GFLOP, 0.29 ms at the rate of one
// large product; forward 77 MB are read and 617 written, backward 385 and 308, of U 617.

enum Kept { NOTHING, U, SLOPE };
constexpr int ROWS = 128, DEPTH = 64;  // and 64 columns of what was kept at a time

constexpr __device__ int stages(int n, bool back) { return (n > 128 ? 5 : 6) - back; }
__device__ inline int blocks_of(int depth) { return (depth + DEPTH - 1) / DEPTH; }

// The right factors as the tensor cores want them: w1 (depth, columns) for forward and w2, whose
// transpose has that shape, for backward. For each N columns and each 64 of the depth a grid of 8 x 8
// cores, 8 columns of 8 k, with zeros below the depth. Cores lie along n first. A thread packs 8 k of a
// column (the depth is a multiple of that).
template <typename T>
__global__ void pack_weights(
    const T* w1, const T* w2, T* forward, T* backward, int columns, int depth, int n_forward,
    int n_backward
) {
    bool back = blockIdx.y;
    int width = back ? n_backward : n_forward, blocks = blocks_of(depth);
    int i = blockIdx.x * blockDim.x + threadIdx.x, block = i / (DEPTH / 8 * width);
    if (block >= columns / width * blocks) return;
    int within = i % (DEPTH / 8 * width), k = block % blocks * DEPTH + within / width * 8;
    int n = block / blocks * width + unit_of(within % width);
    Pack<T, 8> packed = {};
    if (k < depth && back) packed = load<8>(w2 + Index(n) * depth + k);
    else if (k < depth)
        #pragma unroll
        for (int j = 0; j < 8; j++) packed.value[j] = w1[Index(k + j) * columns + n];
    store((back ? backward : forward) + Index(i) * 8, packed);
}

// The numbers of a thread in 32 columns of its tile: 8 side by side in each of 4 rows, 8 and 64 apart.
__device__ inline int row_of(int r) { return r / 2 * 64 + r % 2 * 8; }

// Forward: g and what is kept. Backward: du, and sums of each 128 rows. Slopes, between -0.13 and 1.13, are
// stored as halves, rounded less than as bfloat16. A cluster has 256 rows of a tile's columns; clusters walk
// on by as many as there are, columns first. Below the last row, and right of the depth, tiles come as
// zeros, and nothing is stored.
template <typename T, int N, bool BACK, Kept KEPT>
__global__ __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) void mix_channels(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap before, const T* b,
    const T* bias, T* kept, T* g, T* du, float* sums, int rows, int columns, int depth
) {
    constexpr int A = ROWS * DEPTH * 2, B = DEPTH * N * 2, STAGE = A + B, STAGES = stages(N, BACK);
    constexpr int PIECES = BACK ? N / 64 : 0, PIECE = ROWS * 64 * 2;  // of what was kept of a tile
    constexpr int AFTER = STAGES * STAGE + PIECES * PIECE;
    extern __shared__ __align__(1024) unsigned char shared[];
    Word ring = address(shared), pieces = ring + STAGES * STAGE;  // of a and b; what was kept
    Word full = ring + AFTER, empty = full + 8 * STAGES;
    Word gone = empty + 8 * STAGES, here = gone + 8 * PIECES;  // pieces
    float* parts = reinterpret_cast<float*>(shared + AFTER + 256);  // of sums, 8 warps' (N,)
    int thread = threadIdx.x % 128, group = warpgroup(), rank = rank_in_cluster();
    int wide = columns / N, blocks = blocks_of(depth);
    int tiles = (rows + 2 * ROWS - 1) / (2 * ROWS) * wide, clusters = gridDim.x / 2, first = blockIdx.x / 2;
    int count = first < tiles ? (tiles - first - 1) / clusters + 1 : 0;

    // `here` is there for each group: with one for both, a group that comes early would take the phase
    // of two tiles ago for its own.
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            start_barrier(full + 8 * i, 1);
            start_barrier(empty + 8 * i, 8);  // four warps of two blocks
        }
        for (int i = 0; i < PIECES; i++) {
            start_barrier(gone + 8 * i, 4);
            start_barrier(here + 8 * i, 1);
            start_barrier(here + 8 * (PIECES + i), 1);
        }
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
    cluster_sync();

    if (group < 0) {  // ask for what is to come
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 0) {  // a, and a half of b
            int stage = 0, round = 0;
            for (int t = 0; t < count; t++) {
                int tile = first + t * clusters, row = (tile / wide * 2 + rank) * ROWS;
                const char* from = reinterpret_cast<const char*>(b)
                                 + Index(tile % wide) * blocks * B + rank * (B / 2);
                #pragma unroll 1
                for (int k = 0; k < blocks; k++, from += B) {
                    Word at = ring + stage * STAGE;
                    wait(empty + 8 * stage, round ^ 1);
                    expect_bytes(full + 8 * stage, STAGE);
                    copy_tile(at, &a, k * DEPTH, row, full + 8 * stage);
                    copy_to_both(at + A + rank * (B / 2), from, B / 2, full + 8 * stage);
                    if (++stage == STAGES) stage = 0, round ^= 1;
                }
            }
        } else if (BACK && threadIdx.x == 32) {  // what was kept
            for (int t = 0; t < count; t++) {
                int tile = first + t * clusters, row = (tile / wide * 2 + rank) * ROWS;
                for (int i = 0; i < PIECES; i++) {
                    Word came = here + 8 * (t % 2 * PIECES + i);
                    wait(gone + 8 * i, t & 1 ^ 1);
                    expect_bytes(came, PIECE);
                    copy_tile(pieces + i * PIECE, &before, tile % wide * N + i * 64, row, came);
                }
            }
        }
        __syncwarp();
    } else {  // multiply
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        int lane = thread % 32, warp = thread / 32;
        float sum[2][N / 2];  // of 64 rows each
        if (group == 1) end_turn(1);
        int t = group;
        #pragma unroll 1
        for (; t < count; t += 2) {
            int tile = first + t * clusters;
            int step = t * blocks, stage = step % STAGES, round = step / STAGES & 1, last = 0;
            begin_turn(group);
            #pragma unroll 1
            for (int k = 0; k < blocks; k++) {
                Word at = ring + stage * STAGE;
                Long a_at = swizzled(at), b_at = matrix(at + A, N * 16);
                wait(full + 8 * stage, round);
                begin_products();
                #pragma unroll
                for (int i = 0; i < DEPTH / 16; i++)
                    #pragma unroll
                    for (int half = 0; half < 2; half++)
                        multiply(sum[half], further(a_at, half * 64 * 128 + i * 32),
                                 further(b_at, i * 2 * N * 16), k | i);
                commit_products();
                if (k == blocks - 1) end_turn(group);
                wait_for_products<1>();  // those before
                if (k && lane < 2) arrive_at(empty + 8 * last, lane);
                last = stage;
                if (++stage == STAGES) stage = 0, round ^= 1;
            }
            wait_for_products<0>();
            if (lane < 2) arrive_at(empty + 8 * last, lane);
            settle(sum[0]);
            settle(sum[1]);

            int row = (tile / wide * 2 + rank) * ROWS + 16 * warp + lane / 4, left = tile % wide * N;
            Index place = Index(row) * columns + left + lane % 4 * 8;
            Word own = pieces + (16 * warp + lane / 4) * 128;
            #pragma unroll
            for (int j = 0; j < N; j += 32) {
                float added[8] = {};  // forward: bias; backward: sums
                Word piece = own + j / 64 * PIECE + 16 * ((j / 8 % 8 + lane % 4) ^ lane / 4);
                if (BACK && j % 64 == 0) wait(here + 8 * (group * PIECES + j / 64), t >> 1 & 1);
                if (!BACK) {
                    uint4 biases = *reinterpret_cast<const uint4*>(bias + left + lane % 4 * 8 + j);
                    #pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float2 two = Two<T>::unpack((&biases.x)[i]);
                        added[2 * i] = two.x, added[2 * i + 1] = two.y;
                    }
                }
                #pragma unroll
                for (int r = 0; r < 4; r++) {
                    uint4 old, gs, others;
                    if (BACK) old = load_four(piece + row_of(r) * 128);
                    #pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float low = sum[r / 2][j / 2 + 4 * i + r % 2 * 2];
                        float high = sum[r / 2][j / 2 + 4 * i + r % 2 * 2 + 1];
                        float2 slope = {};
                        if (BACK) {
                            if (KEPT == U) {
                                float2 u = Two<T>::unpack((&old.x)[i]);
                                (&gs.x)[i] = Two<T>::pack(gelu(u.x, slope.x), gelu(u.y, slope.y));
                            } else {
                                slope = Two<__half>::unpack((&old.x)[i]);
                            }
                            low *= slope.x, high *= slope.y;
                            added[2 * i] += low, added[2 * i + 1] += high;
                        } else {
                            low += added[2 * i], high += added[2 * i + 1];
                            (&gs.x)[i] = KEPT == SLOPE
                                ? Two<T>::pack(gelu(low, slope.x), gelu(high, slope.y))
                                : Two<T>::pack(gelu(low), gelu(high));
                        }
                        (&others.x)[i] = BACK || KEPT == U ? Two<T>::pack(low, high)
                                                           : Two<__half>::pack(slope.x, slope.y);
                    }
                    if (row + row_of(r) >= rows) continue;
                    Index at = place + Index(row_of(r)) * columns + j;
                    if (BACK || KEPT != NOTHING) *reinterpret_cast<uint4*>((BACK ? du : kept) + at) = others;
                    if (!BACK || KEPT == U) *reinterpret_cast<uint4*>((BACK ? kept : g) + at) = gs;
                }
                if (BACK && j % 64) {
                    __syncwarp();
                    if (lane == 0) arrive(gone + 8 * (j / 64));
                }
                if (BACK) {  // over a warp's rows: 8 lanes have the same 8 columns, and end with one each
                    #pragma unroll
                    for (int many = 4; many; many /= 2) {
                        int apart = 16 / many;
                        #pragma unroll
                        for (int i = 0; i < many; i++) {
                            float low = added[i], high = added[i + many];
                            float other = __shfl_xor_sync(0xffffffff, lane & apart ? low : high, apart);
                            added[i] = (lane & apart ? high : low) + other;
                        }
                    }
                    int column = lane % 4 * 8 + lane / 4 % 2 * 4 + lane / 8 % 2 * 2 + lane / 16;
                    parts[(group * 4 + warp) * N + j + column] = added[0];
                }
            }
            if (BACK) {
                sync_warpgroup(group);
                for (int i = thread; i < N; i += 128) {
                    const float* own_parts = parts + group * 4 * N + i;
                    sums[Index(tile / wide * 2 + rank) * columns + left + i] =
                        own_parts[0] + own_parts[N] + own_parts[2 * N] + own_parts[3 * N];
                }
                sync_warpgroup(group);
            }
        }
        if (t == count) begin_turn(group);  // whose turn nobody takes
    }
    cluster_sync();  // nobody leaves while the other may still write to it
}
