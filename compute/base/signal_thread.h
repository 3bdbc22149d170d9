// Signals as calls of an ordinary function.

#pragma once

#include <functional>
#include <initializer_list>

namespace fourierkv {

// From now on `handle(number)` is called for each of these signals, one after the other, on a
// thread made for it: it may lock, wait and end the process. Works whichever thread the kernel
// picks, those that libraries start before main included (blocking signals would miss them). Once
// per process.
void HandleSignals(std::initializer_list<int> numbers, std::function<void(int number)> handle);

}  // namespace fourierkv
