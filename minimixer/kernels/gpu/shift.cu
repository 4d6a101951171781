// Images (B, H, W, channels), each moved down and right by its own two numbers; zeros come in.
//
// A pixel's value is copied as it is, whatever its type: T is only as wide. A thread has one of
// them. Bytes moved = bytes at the least: the images read once, but for what is moved out of sight,
// and written once.

template <typename T>
__global__ void shift(
    const T* images, const Index* shifts, T* moved, Index size, int height, int width, int channels
) {
    Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= size) return;
    int channel = i % channels;
    Index rest = i / channels;
    int column = rest % width;
    rest /= width;
    int row = rest % height;
    Index image = rest / height;
    Index from_row = row - shifts[2 * image], from_column = column - shifts[2 * image + 1];
    bool inside = from_row >= 0 && from_row < height && from_column >= 0 && from_column < width;
    Index from = ((image * height + from_row) * width + from_column) * channels + channel;
    moved[i] = inside ? images[from] : T(0);
}
