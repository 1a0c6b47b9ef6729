// What Python hands to a recurrence: one direction of one layer, of numbers T.
//
// Arrays are C-contiguous. `recurrence.py` has the same fields in the same order.
#pragma once

#include <cstdint>

#include "native/threads.h"
#include "recurrence/clock.cuh"

template <typename T>
struct Layer {
    int64_t steps, batch, inputs, hidden;
    int64_t row;        // numbers from row to row of y and dy, which other directions share
    int64_t backwards;  // whether this is the direction from the last step to the first
    int64_t slots;      // steps that operands and saved have room for: all of them in training, else two
    int64_t chunk;      // steps of a chunk of the gradients
    Team team;
    double numbers[13];  // the cell's options that are numbers

    const int32_t* lengths;              // (B), or null
    const Marks* marks;                  // (T, B), or null
    const T* mask;                       // (B, H), or null
    const T* x;                          // (T, B, I)
    const T *w_ih, *w_hh, *b_ih, *b_hh;  // (G*H, I), (G*H, H), (G*H) or null
    const T* weights;                    // (W, H): those of one number for each unit
    const T* masks;                      // (M, T, B, H): those of each step
    T *h, *c;                            // (B, H): the state, advanced in place; c is null for a cell that has none
    T* y;                                // (T, B, H) of the rows
    T* operands;                         // (phases, slots, B, H): what each phase of a step multiplies
    T* saved;                            // (slots, B, S, H): the values of a step that the backward pass reads
    T* back;                             // the panels of the backward pass: written in training, else null

    const T* dy;                       // as y, or null
    T *dh, *dc;                        // (B, H): the gradient of the final state, which becomes that of the initial one
    T* dx;                             // (T, B, I)
    int64_t adds;                      // whether dx is added to what another direction made of it
    int64_t continues;                 // whether the gradients of weights are added to what is there; else that is not read
    T *dw_ih, *dw_hh, *db_ih, *db_hh, *dweights;

    T* workspace;  // of the call, aligned to a cache line, as are operands, saved and back
};

// The numbers that a call needs room for. In inference operands and saved are null, and belong to the workspace. If that
// is null too, which it may be where its size is zero, it is on the stack.
struct Sizes {
    int64_t inference, workspace, workspace_backward, back;  // the first two are those of a forward pass
};
