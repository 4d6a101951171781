// What a random layer keeps: 0 with probability p, else 1 / (1 - p), for each of some elements of each
// example. A draw is one hash of seed, purpose, step, layer, example and element; random.py says why.
// counters: the step, and the number of the first example. Bytes moved: those written.

typedef unsigned long long Bits;

__device__ inline Bits fold(Bits bits, Bits field) {
    bits = (bits ^ field) + 0x9E3779B97F4A7C15;
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9;
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB;
    return bits ^ (bits >> 31);
}

template <typename T>
__global__ void keep(
    const Bits* counters, Bits seed, Bits purpose, Bits layer, double p, Index elements, Index size,
    T* factors
) {
    typedef typename Arithmetic<T>::type A;
    const int digits = sizeof(A) == 8 ? 53 : 24;
    Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= size) return;
    Bits fields[] = {seed, purpose, counters[0], layer, counters[1] + i / elements, Bits(i % elements)};
    Bits bits = 0;
    for (Bits field : fields) bits = fold(bits, field);
    A uniform = A(bits >> (64 - digits)) / A(1LL << digits);
    factors[i] = T(uniform >= A(p) ? A(1 / (1 - p)) : A(0));
}
