// c = f * c + i * g of an LSTM, from post-activation gates (B, 4H) in the order i f g o.
template <bool planted>
__global__ void cell_state(const float* gates, float* c, int hidden) {
    const int b = blockIdx.x, j = threadIdx.x;
    const float* row = gates + b * 4 * hidden;
    const float i = row[j], f = row[hidden + j];
    const float g = row[(planted ? 3 : 2) * hidden + j];  // the planted bug: the output gate
    c[b * hidden + j] = f * c[b * hidden + j] + i * g;
}
