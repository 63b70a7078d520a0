// A layer's routing: regions, mask table, categories and gates.
#pragma once

#include "gradroute.h"

namespace gradroute {

struct Routing {
    const GradrouteLayer &layer;
    const uint32_t *categories;
    const float *table;
    const float *gates;
    const uint32_t *map;

    // route[category of n, region] · gate[n]; a closed gate selects, as a weight of 0 does.
    __device__ float weight(uint32_t n, uint32_t region) const {
        if (layer.regions == 0) {
            return 1.0f;
        }
        const float open = gate(n);
        return open == 0.0f ? 0.0f : weights(n)[region] * open;
    }
    __device__ float gate(uint32_t n) const { return gates == nullptr ? 1.0f : gates[n]; }
    // A sample's weights by region, the gate left out. There must be regions.
    __device__ const float *weights(uint32_t n) const {
        return table + uint64_t(categories[n]) * layer.regions;
    }
    // The regions of an output span, by input span. There must be regions.
    __device__ const uint32_t *regions(uint32_t output_span) const {
        return bias_regions() + layer.output_spans + layer.input_spans
             + output_span * layer.input_spans;
    }

    // Whether a sample's weight is 0 everywhere.
    __device__ bool away(uint32_t n) const {
        for (uint32_t region = 0; region < layer.regions; ++region) {
            if (weight(n, region) != 0.0f) {
                return false;
            }
        }
        return layer.regions != 0;
    }
    // Whether a sample matters whatever its weight.
    __device__ bool recorded() const {
        return layer.flags & GRADROUTE_NORMS || layer.sketch != GRADROUTE_SKETCH_NONE;
    }

    __device__ uint32_t output_span(uint32_t o) const {
        return layer.regions == 0 ? 0 : span(map, layer.output_spans, o);
    }
    __device__ uint32_t input_span(uint32_t column) const {
        return layer.regions == 0
            ? 0
            : span(map + layer.output_spans, layer.input_spans, column % layer.features);
    }

    __device__ uint32_t bias_region(uint32_t o) const {
        return layer.regions == 0 ? 0 : bias_regions()[output_span(o)];
    }
    __device__ uint32_t flow_region(uint32_t input_span) const {
        return layer.regions == 0 ? 0 : bias_regions()[layer.output_spans + input_span];
    }
    __device__ uint32_t region(uint32_t output_span, uint32_t input_span) const {
        return layer.regions == 0 ? 0 : regions(output_span)[input_span];
    }

    // Of element (o, column) of the matrix; column `inputs` is the bias'.
    __device__ uint32_t column_region(uint32_t o, uint32_t column) const {
        return column == layer.inputs ? bias_region(o) : region(output_span(o), input_span(column));
    }

  private:
    __device__ const uint32_t *bias_regions() const {
        return map + layer.output_spans + layer.input_spans;
    }
    // The span that holds a place: the first that ends behind it, else the last.
    __device__ static uint32_t span(const uint32_t *ends, uint32_t count, uint32_t place) {
        uint32_t low = 0, high = count - 1;
        while (low < high) {
            const uint32_t middle = (low + high) / 2;
            if (ends[middle] > place) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        return low;
    }
};

// Where column i of a row of the gradient matrix stands in a row of dw.
__device__ inline uint32_t weight_place(const GradrouteLayer &layer, uint32_t taps, uint32_t i) {
    return taps == 1 ? i : i % layer.features * taps + i / layer.features;
}

// The sample that owns a row: the last whose rows begin at or before it, empty ones left out.
__device__ inline uint32_t sample_of(const uint64_t *offsets, uint32_t samples, uint64_t row) {
    uint32_t low = 0, high = samples - 1;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (offsets[middle + 1] > row) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

}  // namespace gradroute
