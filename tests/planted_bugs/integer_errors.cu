template <bool planted>
__global__ void mean(const int* x, int* out, int n) {
    int sum = 0;
    for (int i = 0; i < n; ++i) sum += x[i];
    *out = sum / (planted ? n - 5 : n);  // the planted bug: a division by zero, for five numbers
}

template <bool planted>
__global__ void through_null(const float* x, float* out) {
    *out = planted || x ? *x : 1;  // the planted bug: reads an array that may not be there
}

template <bool planted>
__global__ void checked(const float* x, float* out) {
    if (planted) assert(*x > 0);
    *out = *x;
}
