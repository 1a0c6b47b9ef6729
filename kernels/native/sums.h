// The functions of the library of a cell with sums over hidden units. The unit that includes this has chosen the cell,
// without its zoneout: `using Chosen = ...`.
#pragma once

#include "native/sums_backward.h"
#include "native/sums_forward.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

using Number = Chosen::Real::Number;
using ChosenSums = SumsLayer<Number>;

// With the options that are numbers.
template <class Cell = Chosen>
static Cell chosen_cell(const ChosenSums& sums) {
    Cell cell{};
    if constexpr (Cell::num_numbers > 0) {
        for (int i = 0; i < Cell::num_numbers; ++i) cell.number[i] = sums.layer.numbers[i];
    }
    return cell;
}

EXPORTED void gpurnn_sums_sizes(const ChosenSums* sums, SumsSizes* sizes) {
    sizes->workspace = SumsForward<Chosen>(*sums, chosen_cell(*sums)).workspace();
    sizes->workspace_backward = SumsBackward<Chosen>(*sums, chosen_cell(*sums)).workspace();
    sizes->back = SumsPanels<Chosen>{*sums, nullptr}.size();
    sizes->kept = Kept<Chosen>(*sums).size;
}
EXPORTED void gpurnn_sums_forward(const ChosenSums* sums) { SumsForward<Chosen>(*sums, chosen_cell(*sums)).run(); }
EXPORTED void gpurnn_sums_backward(const ChosenSums* sums) { SumsBackward<Chosen>(*sums, chosen_cell(*sums)).run(); }
