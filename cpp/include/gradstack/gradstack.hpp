// gradstack from C++: build a graph, train, predict and differentiate.
//
//   auto graph = gradstack::mlp({64, 32, 10}, "relu");
//   auto w = gradstack::initial_parameters<float>(*graph, 0);
//   gradstack::Trainer<float> trainer(graph, gradstack::active_kernels<float>(), cost, optimizer,
//   {});
//
// See examples/cpp for a complete program.
#pragma once

#include "gradstack/calculus.hpp"
#include "gradstack/cost.hpp"
#include "gradstack/data.hpp"
#include "gradstack/graph.hpp"
#include "gradstack/mlp.hpp"
#include "gradstack/objective.hpp"
#include "gradstack/parallel.hpp"
#include "gradstack/plan.hpp"
#include "gradstack/population.hpp"
#include "gradstack/program.hpp"
#include "gradstack/random.hpp"
#include "gradstack/registry.hpp"
#include "gradstack/search.hpp"
#include "gradstack/trainer.hpp"
#include "gradstack/updater.hpp"
