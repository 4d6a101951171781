// Images (B, H, W, in) -> tokens (S, B, P*P*in), scaled on the way: the model's first step.
//
// Within a row of a patch, P in numbers lie side by side in both; a thread moves V of them. `scale`
// and `offset` (one for each of the `in` channels) may be null. Bytes moved = bytes at the least: the
// images read once, the tokens written once.

template <typename I, typename T, int V>
__global__ void cut_patches(
    const I* images, const typename Arithmetic<T>::type* scale,
    const typename Arithmetic<T>::type* offset, T* tokens, Index size,
    int batch, int height, int width, int channels, int patch
) {
    typedef typename Arithmetic<T>::type A;
    Index stride = Index(gridDim.x) * blockDim.x * V;
    for (Index i = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * V; i < size; i += stride) {
        int run = patch * channels;       // numbers in a row of a patch
        Index rest = i / run;
        int within = int(i - rest * run);
        int line = int(rest % patch);     // row within the patch
        rest /= patch;
        int image = int(rest % batch), token = int(rest / batch), across = width / patch;
        Index row = Index(token / across) * patch + line;
        Index from = ((image * Index(height) + row) * width) * channels
                     + Index(token % across) * run + within;
        Pack<I, V> in = load<V>(images + from);
        Pack<T, V> out;
        for (int j = 0; j < V; ++j) {
            A value = A(in.value[j]);
            if (scale) {
                int channel = (within + j) % channels;
                value = value * A(scale[channel]) + A(offset[channel]);
            }
            out.value[j] = T(value);
        }
        store(tokens + i, out);
    }
}
