# SPDX-License-Identifier: Apache-2.0
# Debian packages by CPack, one for each component of install.cmake: `cpack -B DIRECTORY` in a build directory, or
# scripts/package. docs/packages.md says what is in them. A build that lacks one of the parts, or whose C++ libraries are
# shared, has no packages: an application binary interface (ABI) is promised for the C library alone.
if(NOT PROJECT_IS_TOP_LEVEL OR NOT TARGET sockalarmd OR NOT TARGET sockalarm_c OR NOT TARGET sockalarm_completions
   OR BUILD_SHARED_LIBS OR SOCKALARM_SANITIZE)
  return()
endif()
set(SOCKALARM_PACKAGES ON)  # for the tests

set(SOCKALARM_MAINTAINER "sockalarm maintainers <maintainers@sockalarm.example>" CACHE STRING
    "Who made the packages, as NAME <ADDRESS>")
set(debian ${PROJECT_SOURCE_DIR}/cmake/debian)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME sockalarm)
set(CPACK_PACKAGE_VENDOR sockalarm)
set(CPACK_DEBIAN_PACKAGE_RELEASE 1)
set(CPACK_DEBIAN_PACKAGE_MAINTAINER "${SOCKALARM_MAINTAINER}")
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_ALL library development daemon tools)
set(CPACK_INSTALL_PREFIX /usr)
set(CPACK_SET_DESTDIR ON)  # so that what names its prefix, as the unit does, names this one
set(CPACK_STRIP_FILES ON)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
set(CPACK_PRE_BUILD_SCRIPTS ${debian}/complete.cmake)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)

# As Debian names libraries: by the soname, libsockalarm_c.so.N.
set(library libsockalarm-c${PROJECT_VERSION_MAJOR})
set(version "${PROJECT_VERSION}-${CPACK_DEBIAN_PACKAGE_RELEASE}")
set(about "sockalarm tells a program at once when the peer of one of its TCP connections
goes away, from a thread that is blocked, and runs a chain of actions exactly
once.")

set(CPACK_DEBIAN_LIBRARY_PACKAGE_NAME ${library})
set(CPACK_DEBIAN_LIBRARY_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_LIBRARY_PACKAGE_MULTIARCH same)
set(CPACK_DEBIAN_LIBRARY_PACKAGE_SUGGESTS sockalarmd)
set(CPACK_DEBIAN_LIBRARY_DESCRIPTION "know at once when a TCP peer goes away (C library)
${about}
.
This package has the shared library for C and for bindings of other languages.")
# The next versions keep what this one has, so programs need this one or a later one.
set(CPACK_DEBIAN_LIBRARY_PACKAGE_CONTROL_EXTRA ${debian}/library/triggers ${PROJECT_BINARY_DIR}/debian/shlibs)
file(CONFIGURE OUTPUT debian/shlibs CONTENT "libsockalarm_c ${PROJECT_VERSION_MAJOR} ${library} (>= ${PROJECT_VERSION})\n")

set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libsockalarm-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_MULTIARCH same)
# Static libraries bring no dependencies of their own, so they are named: what the headers include and what is linked.
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS "${library} (= ${version}), libexpected-dev, libbpf-dev (>= 1.1), libcap-ng-dev, libre2-dev")
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SUGGESTS "libpq-dev, libmariadb-dev, pkg-config")
set(CPACK_DEBIAN_DEVELOPMENT_DESCRIPTION "know at once when a TCP peer goes away (development files)
${about}
.
This package has the headers, the static C++ libraries, and what CMake and
pkg-config need to find them, and the C library.")

set(CPACK_DEBIAN_DAEMON_PACKAGE_NAME sockalarmd)
set(CPACK_DEBIAN_DAEMON_PACKAGE_SECTION net)
set(CPACK_DEBIAN_DAEMON_PACKAGE_RECOMMENDS "sockalarm, systemd")
set(CPACK_DEBIAN_DAEMON_PACKAGE_CONTROL_EXTRA ${debian}/sockalarmd/postinst ${debian}/sockalarmd/prerm ${debian}/sockalarmd/postrm)
set(CPACK_DEBIAN_DAEMON_DESCRIPTION "know at once when a TCP peer goes away (daemon)
${about}
.
This package has the daemon that loads the BPF programs once for a host, so
that programs without privileges get what they tell.")

set(CPACK_DEBIAN_TOOLS_PACKAGE_NAME sockalarm)
set(CPACK_DEBIAN_TOOLS_PACKAGE_SECTION net)
set(CPACK_DEBIAN_TOOLS_PACKAGE_SUGGESTS sockalarmd)
set(CPACK_DEBIAN_TOOLS_DESCRIPTION "know at once when a TCP peer goes away (command line)
${about}
.
This package has the command: it runs a program that ends with its client,
watches the connections of a process, and tells what a machine gives.")

include(CPack)
