// SPDX-License-Identifier: Apache-2.0
#include <bpf/btf.h>
#include <gtest/gtest.h>

#include <memory>

#include "core/bpf_programs.h"

namespace sockalarm::detail {
namespace {

using Types = std::unique_ptr<btf, decltype(&btf__free)>;

// A kernel's type information, whose ring has a lock of that type.
Types kernel_with(const char* lock, const char* ring = "bpf_ringbuf") {
  Types types(btf__new_empty(), &btf__free);
  const int inner = btf__add_struct(types.get(), "raw_spinlock", 4);
  const int type = btf__add_typedef(types.get(), lock, inner);
  EXPECT_GT(btf__add_struct(types.get(), ring, 8), 0);
  EXPECT_EQ(btf__add_field(types.get(), "pending", inner, 0, 0), 0);
  EXPECT_EQ(btf__add_field(types.get(), "spinlock", type, 32, 0), 0);
  return types;
}

TEST(RingLock, OneThatDoesNotSleepIsGood) {
  EXPECT_TRUE(check_ring_lock(kernel_with("raw_spinlock_t").get()));
}

TEST(RingLock, AnyOtherIsRefusedByName) {
  for (const auto& [lock, ring] : {std::pair{"spinlock_t", "bpf_ringbuf"}, {"raw_spinlock_t", "another"}}) {
    const auto checked = check_ring_lock(kernel_with(lock, ring).get());
    ASSERT_FALSE(checked);
    EXPECT_NE(checked.error().message().find("CVE-2024-50138"), std::string::npos);
  }
}

// This kernel, whatever it is preempted by, has the lock where it is looked for.
TEST(RingLock, TheStructOfThisKernelIsUnderstood) {
  const Types kernel(btf__load_vmlinux_btf(), &btf__free);
  if (!kernel) return;  // other tests say what serves then
  const int ring = btf__find_by_name_kind(kernel.get(), "bpf_ringbuf", BTF_KIND_STRUCT);
  ASSERT_GT(ring, 0);
  const btf_type* const type = btf__type_by_id(kernel.get(), static_cast<__u32>(ring));
  bool found = false;
  for (unsigned i = 0; i < btf_vlen(type); ++i)
    found |= std::string_view(btf__name_by_offset(kernel.get(), btf_members(type)[i].name_off)) == "spinlock";
  EXPECT_TRUE(found);
}

}  // namespace
}  // namespace sockalarm::detail
