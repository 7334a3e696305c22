#pragma once

#if defined(_WIN32)
#define DEFAKEQ_API
#else
#define DEFAKEQ_API __attribute__((visibility("default")))
#endif
