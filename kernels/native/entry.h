// The functions of a recurrence's library. The unit that includes this has chosen the cell: `using Chosen = ...`.
#pragma once

#include "native/backward.h"
#include "native/forward.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

using Number = Chosen::Real::Number;
using ChosenLayer = Layer<Number>;

// With the options that are numbers.
template <class Cell = Chosen>
static Cell chosen_cell(const ChosenLayer& layer) {
    Cell cell{};
    if constexpr (Cell::num_numbers > 0) {
        for (int i = 0; i < Cell::num_numbers; ++i) cell.number[i] = layer.numbers[i];
    }
    return cell;
}

// Numbers of operands, or of the values of steps, up to a cache line.
static int64_t of_steps(const ChosenLayer& layer, int64_t each) {
    constexpr int64_t line = 64 / sizeof(Number);
    return (layer.slots * layer.batch * layer.hidden * each + line - 1) / line * line;
}
static int64_t operands_size(const ChosenLayer& layer) { return of_steps(layer, Chosen::phases); }
static int64_t workspace_of_inference(const ChosenLayer& layer) {
    const int64_t saved = Chosen::phases > 1 ? of_steps(layer, Chosen::num_saved) : 0;
    return operands_size(layer) + saved + Forward<Chosen>::workspace(layer);
}

constexpr int64_t on_the_stack = 8192;  // numbers

EXPORTED void gpurnn_sizes(const ChosenLayer* layer, Sizes* sizes) {
    const int64_t inference = workspace_of_inference(*layer);
    sizes->inference = inference <= on_the_stack ? 0 : inference;
    sizes->workspace = Forward<Chosen>::workspace(*layer);
    sizes->workspace_backward = Backward<Chosen>::workspace(*layer);
    sizes->back = BackwardPanels<Chosen>{layer->hidden, layer->inputs, nullptr}.size();
}

static void infer(ChosenLayer layer) {
    layer.operands = layer.workspace;
    layer.workspace += operands_size(layer);
    if (Chosen::phases > 1) {
        layer.saved = layer.workspace;
        layer.workspace += of_steps(layer, Chosen::num_saved);
    }
    Forward<Chosen>(layer, chosen_cell(layer)).run();
}

static void infer_on_the_stack(ChosenLayer layer) {
    alignas(64) Number room[on_the_stack];
    layer.workspace = room;
    infer(layer);
}

EXPORTED void gpurnn_forward(const ChosenLayer* layer) {
    if (layer->operands) {
        Forward<Chosen>(*layer, chosen_cell(*layer)).run();
    } else if (layer->workspace) {
        infer(*layer);
    } else {
        infer_on_the_stack(*layer);
    }
}

// The same of a layer that has the addresses of NumPy's array objects, behind whose first `head` bytes stand those of their
// numbers.
EXPORTED void gpurnn_forward_of_objects(const ChosenLayer* objects, int head) {
    ChosenLayer layer = *objects;
    const auto read = [&](auto*... array) {
        ((*array = *array ? *reinterpret_cast<decltype(array)>(uintptr_t(*array) + head) : nullptr), ...);
    };
    read(&layer.lengths, &layer.marks, &layer.mask, &layer.x, &layer.w_ih, &layer.w_hh, &layer.b_ih, &layer.b_hh);
    read(&layer.weights, &layer.masks, &layer.h, &layer.c, &layer.y);
    gpurnn_forward(&layer);
}

EXPORTED void gpurnn_backward(const ChosenLayer* layer) { Backward<Chosen>(*layer, chosen_cell(*layer)).run(); }
