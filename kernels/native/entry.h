// The functions of a recurrence's library. The unit that includes this has chosen the cell: `using Chosen = ...`.
#pragma once

#include <type_traits>

#include "native/backward.h"
#include "native/forward.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

using ChosenLayer = Layer<Chosen::Real::Number>;

// Its members are the options that are numbers, in their order.
static Chosen chosen_cell(const ChosenLayer& layer) {
    Chosen cell{};
    if constexpr (!std::is_empty_v<Chosen>) {
        auto* const members = reinterpret_cast<Chosen::Real*>(&cell);
        for (unsigned i = 0; i < sizeof cell / sizeof *members; ++i) members[i] = layer.numbers[i];
    }
    return cell;
}

EXPORTED void gpurnn_sizes(const ChosenLayer* layer, Sizes* sizes) {
    sizes->workspace = Forward<Chosen>::workspace(*layer);
    sizes->workspace_backward = Backward<Chosen>::workspace(*layer);
    sizes->back = BackwardPanels<Chosen>{layer->hidden, layer->inputs, nullptr}.size();
}

EXPORTED void gpurnn_forward(const ChosenLayer* layer) { Forward<Chosen>(*layer, chosen_cell(*layer)).run(); }

EXPORTED void gpurnn_backward(const ChosenLayer* layer) { Backward<Chosen>(*layer, chosen_cell(*layer)).run(); }
