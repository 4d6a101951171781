// AdamW over one range of the flat buffer, and the low-precision copy of the new weights.
//
// Bytes moved = bytes at the least: w, m and v read and written, g read, `low` written: 30 bytes a
// weight with a two-byte copy. Measured on an H100 (60M weights, bfloat16 copy): 0.95 of the rate of a
// copy, 2.92 TB/s.

// control is the optimizer's, on the device: learning-rate factor, steps done, clipping factor, and
// whether the gradients are finite (if not, nothing changes). P: float or double, T: the copy's
// type; low may be null.
template <typename P, typename T, int W>
__global__ void adamw(
    P* w, const P* g, P* m, P* v, T* low, Index size, const double* control,
    double lr, double decay, double beta1, double beta2, double eps
) {
    if (control[3] == 0) return;
    __shared__ P shared[4];
    if (threadIdx.x == 0) {
        double factor = control[0], step = control[1] + 1;
        shared[0] = P(control[2]);
        shared[1] = P(lr * factor / (1 - pow(beta1, step)));
        shared[2] = P(1 / sqrt(1 - pow(beta2, step)));
        shared[3] = P(1 - lr * decay * factor);
    }
    __syncthreads();
    P clip = shared[0], rate = shared[1], for_v = shared[2], keep = shared[3];
    P b1 = P(1 - beta1), b2 = P(1 - beta2), e = P(eps);
    Index stride = Index(gridDim.x) * blockDim.x * W;
    for (Index i = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * W; i < size; i += stride) {
        Pack<P, W> ws = load<W>(w + i), gs = load<W>(g + i), ms = load<W>(m + i), vs = load<W>(v + i);
        Pack<T, W> copy;
        for (int j = 0; j < W; ++j) {
            P gradient = gs.value[j] * clip;
            ms.value[j] += b1 * (gradient - ms.value[j]);
            vs.value[j] += b2 * (gradient * gradient - vs.value[j]);
            P root = sqrt(vs.value[j]) * for_v + e;
            ws.value[j] = ws.value[j] * keep - rate * ms.value[j] / root;
            copy.value[j] = T(ws.value[j]);
        }
        store(w + i, ws);
        store(m + i, ms);
        store(v + i, vs);
        if (low) store(low + i, copy);
    }
}

// The end of a step: it is counted if the gradients were finite, and the next is clipped by nothing
// so far. counters: the model's random counters, of which the first is the step.
__global__ void count_step(double* control, unsigned long long* counters) {
    control[1] += control[3];
    control[2] = control[3] = 1;
    counters[0] += 1;
}
