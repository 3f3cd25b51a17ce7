# SPDX-License-Identifier: Apache-2.0
include(CMakePackageConfigHelpers)

install(TARGETS sockalarm EXPORT sockalarmTargets)
install(DIRECTORY include/sockalarm TYPE INCLUDE)
install(FILES LICENSE.md TYPE DOC)
install(DIRECTORY LICENSES TYPE DOC)
install(EXPORT sockalarmTargets NAMESPACE sockalarm:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/sockalarm)
configure_package_config_file(cmake/sockalarmConfig.cmake.in sockalarmConfig.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/sockalarm)
write_basic_package_version_file(sockalarmConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/sockalarmConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/sockalarmConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/sockalarm)

if(SOCKALARM_BPF)
  set(SOCKALARM_PRIVATE_LIBS "-lbpf -lcap-ng")
endif()
# At install time, so that `cmake --install --prefix` counts.
install(CODE "set(SOCKALARM_PRIVATE_LIBS \"${SOCKALARM_PRIVATE_LIBS}\")
              set(CMAKE_INSTALL_LIBDIR \"${CMAKE_INSTALL_LIBDIR}\")
              set(CMAKE_INSTALL_INCLUDEDIR \"${CMAKE_INSTALL_INCLUDEDIR}\")
              set(PROJECT_DESCRIPTION \"${PROJECT_DESCRIPTION}\")
              set(PROJECT_VERSION \"${PROJECT_VERSION}\")
              configure_file(\"${CMAKE_CURRENT_SOURCE_DIR}/cmake/sockalarm.pc.in\" \"${CMAKE_CURRENT_BINARY_DIR}/sockalarm.pc\" @ONLY)")
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/sockalarm.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

if(SOCKALARM_TOOLS)
  install(TARGETS sockalarm_cli)
  install(FILES docs/man/sockalarm.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
endif()
